"""What can be asked of probes, one spec a file: checked data that fits in YAML and runs itself."""
