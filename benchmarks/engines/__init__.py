"""One module for each engine, all to the protocol of `engines.protocol`."""
