"""The figures of a table's verdicts, one file per figure: plotly's traces and layout in plain JSON values."""
