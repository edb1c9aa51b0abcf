"""The method: record, group, route, read out, make explicit, edit, save, verify."""
