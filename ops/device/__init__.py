"""What runs on a GPU: columns and tables, their memory, and how they cross; operators and functions of arrays below."""
