"""The command `afov`: one door to the programs of pipeline and trainer, which never import each other."""
