"""Parts of pages: each a function that gives the layout, and where needed one that registers callbacks."""
