"""What is known of the user's servers, between calls and between processes.

    entries      the value types: servers, models, conditions, measurements
    paths        where the registry's file and the `aicortex.toml` files are
    store        `Registry`: the SQLite file
    config       `read_config`: the `aicortex.toml` files
    sessions     the conversations that have a name, in the same file
    credentials  references to secrets, how an entry is checked, and the `Server` an entry stands for
    transfer     servers to and from TOML text, for `aicortex servers export` and `import`

Nothing is imported here: a call that needs no registry does not pay for sqlite3 and TOML. Whoever needs a part imports
it from its module.
"""
