"""What carries messages between server and nodes on one machine: this process, or Flower."""
