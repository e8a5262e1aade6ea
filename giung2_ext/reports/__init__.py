"""Tables and figures over run directories; read-only but for the report's own folder."""
