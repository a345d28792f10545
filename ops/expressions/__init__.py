"""Expressions: values computed for each row from the columns of one table."""
