"""What every partition is made from: keys, fingerprints, dependencies and the journal."""
