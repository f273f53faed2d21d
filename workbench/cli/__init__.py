"""The `workbench` command: one file per sub-command, found by entry point (`workbench.commands`)."""
