"""The ideas that the scheduler is made of. Pure: each works on the run state, and asks for effects by instructions."""
