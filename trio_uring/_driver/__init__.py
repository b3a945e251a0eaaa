"""How operations are done in one trio.run. Nothing else parks a task or wakes one."""
