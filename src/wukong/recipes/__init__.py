"""The recipes that come with the package: `wukong run kitchen`."""
