"""From stored runs to something read: frames, tables, figures, a page, exports."""
