"""Pages and API, a module for each subject. Each has its `ROUTERS`."""
