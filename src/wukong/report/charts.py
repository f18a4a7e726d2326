"""The figures of a page, each with the id of its place."""

from __future__ import annotations

from dataclasses import dataclass, field

from wukong.report.figures import Figure


@dataclass
class Charts:
    """The page's figures by element id."""

    by_id: dict[str, Figure] = field(default_factory=dict)

    def add(self, figure: Figure | None) -> str:
        """Registers a figure and returns its element id; empty for None."""
        if figure is None:
            return ""
        name = f"chart-{len(self.by_id) + 1}"
        self.by_id[name] = figure
        return name
