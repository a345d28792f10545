"""What lies on a node's disk: its scratch folder, blocks, what is kept between runs, and the room they take."""
