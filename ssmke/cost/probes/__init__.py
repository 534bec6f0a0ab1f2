"""What the devices of a node report."""
