"""Rules of the optimizer: one file each, each a pure function from plan to plan and what it did."""
