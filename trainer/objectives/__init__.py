"""What is learned: losses, and what turns a batch into one."""
