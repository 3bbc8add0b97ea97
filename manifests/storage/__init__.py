"""The store: shards, documents and archives on any file system."""
