"""The engines that carry messages between server and nodes: this process, or Flower."""
