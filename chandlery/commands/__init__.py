"""The commands, one file for each noun they are about."""
