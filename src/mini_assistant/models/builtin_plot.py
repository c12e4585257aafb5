"""How the built-in model plots a table: it is too small to write code, so it runs a fixed program that draws the columns of the newest one.

A request for a plot is known by how it begins. Pure; `builtin_code.py` asks here.
"""

import re

_BEGINNING = re.compile(
    r"\W*(?:(?:please|now|can you|could you|would you)\s+)*"
    r"(?:(?:plot|chart|graph|draw|visuali[sz]e)\b|(?:make|create|show|give)\s+(?:me\s+)?an?\s+(?:\w+\s+){0,2}(?:plot|chart|graph|diagram|figure)\b)",
    re.IGNORECASE,
)

PLOT_TABLE = """\
import os

import matplotlib.pyplot as plt
import pandas as pd

FOLDER = "/mnt/data"
tables = [name for name in os.listdir(FOLDER) if name.lower().endswith((".csv", ".xlsx"))]
if not tables:
    print("There is no table (.csv or .xlsx) to plot.")
else:
    name = max(tables, key=lambda name: os.path.getmtime(os.path.join(FOLDER, name)))
    read = pd.read_csv if name.lower().endswith(".csv") else pd.read_excel
    table = read(os.path.join(FOLDER, name), nrows=100_000)
    numbers = [column for column in table.columns if pd.api.types.is_numeric_dtype(table[column])]
    labels = [column for column in table.columns if column not in numbers]
    if not numbers:
        print(f"{name} has no column of numbers to plot.")
    else:
        if len(labels) > 1 and table[labels[1]].nunique() <= 12:
            shown = table.pivot_table(index=labels[0], columns=labels[1], values=numbers[0], aggfunc="sum")
        elif labels:
            shown = table.groupby(labels[0], sort=False)[numbers[:8]].sum()
        else:
            shown = table[numbers[:8]]
        shown = shown.head(1000)
        shown.plot(kind="line" if len(shown) > 8 else "bar", figsize=(8, 4), title=name)
        plt.tight_layout()
        plt.show()
        columns = ", ".join(str(column) for column in shown.columns)
        print(f"The figure shows {columns} by {shown.index.name or 'row'}, from {name}.")
"""
"""The program that plots the newest table of a session."""


def is_for_a_plot(question: str) -> bool:
    """Whether a message asks for a plot."""
    return _BEGINNING.match(question) is not None


def plot_answer(printed: str, reason: str) -> str:
    """The answer, from what the program printed. reason: the error in it, in a line."""
    last = printed.splitlines()[-1] if printed else ""
    is_told = last.startswith(("The figure shows ", "There is no table ")) or last.endswith(" to plot.")
    return last if is_told else f"I could not plot it: {reason}"
