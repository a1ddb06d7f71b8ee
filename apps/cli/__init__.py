"""The `nearfield` command."""
