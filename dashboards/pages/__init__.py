"""Pages: each a module with `layout(state, …)` and `register(app, state)`, and ids of its own."""
