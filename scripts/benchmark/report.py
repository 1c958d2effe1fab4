"""Medians and ratios of what was measured: as a table, as JSON, and as a chart."""
import json
import math
import os
import platform
import statistics
import subprocess

SUITES = {
    "trees": "Files of an image",
    "flat": "The flat file",
    "ready": "From the command to the first listing",
    "commands": "Commands (what they write goes into memory)",
    "directory": "The names of a large directory",
    "growth": "How the cost grows",
    "writes": "Writing (overlay beside an untouched image; the rivals write into a copy; sequential: as `dd bs=1M` writes)",
}
FASTER_IS_LESS = {"s"}


class Table:
    """Values in the order in which they first came, one a round."""

    def __init__(self):
        self.values = {}
        # Rows of an earlier run: a new value takes the place of all that are there.
        self.earlier = set()

    def keep(self, path):
        """Takes over what an earlier run has written, for a run of only some parts."""
        if os.path.exists(path):
            with open(path) as file:
                for row in json.load(file)["results"]:
                    key = tuple(row[name] for name in ("suite", "subject", "state", "measure", "unit"))
                    self.values[key] = row["rounds"]
                    self.earlier.add(key)

    def put(self, suite, subject, state, measure, unit, contender, value):
        key = (suite, subject, state, measure, unit)
        if key in self.earlier:
            self.earlier.remove(key)
            self.values[key] = {}
        row = self.values.setdefault(key, {})
        row.setdefault(contender, []).append(value)

    def rows(self):
        for (suite, subject, state, measure, unit), values in self.values.items():
            medians = {name: statistics.median(of) for name, of in values.items()}
            yield {
                "suite": suite, "subject": subject, "state": state, "measure": measure, "unit": unit,
                "medians": medians,
                "ratios": {name: ratio(values["imgfs"], of, unit) for name, of in values.items() if name != "imgfs"} if "imgfs" in values else {},
                "rounds": values,
            }


def ratio(own, other, unit):
    """How many times as good imgfs is, in the middle of the rounds: two values of one round make a pair."""
    less = unit in FASTER_IS_LESS or unit == "MB"
    return statistics.median(b / a if less else a / b for a, b in zip(own, other))


def version(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        return (done.stdout + done.stderr).strip().splitlines()[0]
    except (OSError, IndexError, subprocess.SubprocessError):
        return ""


def package(name):
    return version("dpkg-query", "-W", "-f", "${Package} ${Version}\n", name)


def runnable():
    with open("/proc/loadavg") as text:
        return int(text.read().split()[3].split("/")[0])


def machine():
    with open("/proc/cpuinfo") as rows:
        model = next((row.split(":", 1)[1].strip() for row in rows if row.startswith("model name")), "?")
    with open("/proc/meminfo") as rows:
        memory = int(next(rows).split()[1]) >> 20
    return {
        "processor": model, "cores": os.cpu_count(), "memory_gib": memory, "kernel": platform.release(),
        "system": version("sh", "-c", ". /etc/os-release && echo $PRETTY_NAME"),
        # Without this one. The load average would also count what waits for a disk.
        "busy": runnable() - 1,
        "imgfs": version("imgfs", "--version"),
        "rivals": [package(name) for name in (
            "fuse2fs", "fuseiso", "fusefat", "mtools", "p7zip-full", "xmount", "nbdkit", "libnbd-bin", "qemu-utils")],
    }


def write(table, out, size, rounds):
    rows, facts = list(table.rows()), machine()
    everything = {"machine": facts, "size": vars(size), "rounds": rounds, "results": rows}
    files = {
        "bench.json": json.dumps(everything, indent=1) + "\n",
        "bench.md": markdown(rows, facts, size, rounds),
        "bench.svg": chart(rows),
        "growth.svg": curves(rows),
    }
    for name, text in files.items():
        with open(os.path.join(out, name), "w") as file:
            file.write(text)
    return files


def shown(value, unit):
    if unit == "s":
        return f"{value * 1000:.1f} ms" if value < 10 else f"{value:.1f} s"
    return f"{value:,.0f} {unit}" if unit.startswith("M") else f"{value:,.0f}{unit}"


def markdown(rows, facts, size, rounds):
    counts = sorted({len(of) for row in rows for of in row["rounds"].values()} or {rounds})
    rounds = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    lines = [
        "# How fast imgfs is",
        "",
        "Made by `scripts/bench`; the values of every round are in [bench.json](bench.json).",
        "",
        f"- {facts['imgfs']}; {facts['processor']}, {facts['cores']} cores, {facts['memory_gib']} GiB; Linux {facts['kernel']}, "
        f"{facts['system']}; {facts['busy']} other processes wanted a core at the end.",
        f"- Rivals: {', '.join(filter(None, facts['rivals']))}.",
        f"- Each image holds one file of {size.big >> 20} MB and {size.small_files:,} files of 1-16 KiB in {size.folders} folders. "
        "*Fragmented*: no 4 KiB block of the big file lies beside its neighbour.",
        f"- Medians of {rounds} rounds (bench.json has each), of the run that measured a table last; the versions are those of the last run. Within a round the contenders take turns, in another order each time. Every mount is fresh. "
        "*Warm*: the image is in the host's memory; *cold*: the host's caches were dropped. *Again*: the same once more in the same mount.",
        "- In brackets: how many times as good imgfs is as that contender, in the middle of the pairs of a round. Above 1 imgfs is better.",
        "",
        "![Chart](bench.svg)",
    ]
    for suite, title in SUITES.items():
        mine = [row for row in rows if row["suite"] == suite]
        if not mine:
            continue
        lines += ["", f"## {title}"]
        if suite == "growth":
            lines += ["", "![Curves](growth.svg)"]
        for subject in dict.fromkeys((row["subject"], row["state"]) for row in mine):
            part = [row for row in mine if (row["subject"], row["state"]) == subject]
            names = list(dict.fromkeys(["imgfs"] + [name for row in part for name in sorted(row["medians"])]))
            lines += ["", f"### {subject[0]}" + (f", {subject[1]}" if suite == "trees" else ""), ""]
            lines += ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
            for row in part:
                lines.append(f"| {row['measure']} | " + " | ".join(cell(row, name) for name in names) + " |")
    return "\n".join(lines) + "\n"


def cell(row, name):
    if name not in row["medians"]:
        return "-"
    text = shown(row["medians"][name], row["unit"])
    return text if name not in row["ratios"] else f"{text} ({row['ratios'][name]:.2f}x)"


COLORS = {"imgfs": "#2563eb", "kernel loop": "#6b7280", "the host's file": "#6b7280"}
RIVAL = ["#d97706", "#16a34a", "#9333ea"]
# What the chart shows: a panel a measure.
PANELS = [
    ("trees", "stat walk"), ("trees", "small files"), ("trees", "big file"), ("trees", "random 4 KiB, 4 at once"),
    ("flat", "sequential"), ("flat", "random 4 KiB, 4 at once"),
]


def chart(rows):
    """Bars for each panel, longer is better; what took time is shown as its reciprocal."""
    bar, gap, label, width = 14, 10, 150, 460
    parts, y = [], 10
    for suite, measure in PANELS:
        mine = [row for row in rows if (row["suite"], row["measure"], row["state"]) == (suite, measure, "warm")]
        if not mine:
            continue
        parts.append(f'<text x="10" y="{y + 14}" class="h">{"Tree" if suite == "trees" else "Flat file"}: {measure} (longer is faster)</text>')
        y += 26
        for row in mine:
            speed = {name: 1 / value if row["unit"] == "s" else value for name, value in row["medians"].items()}
            best = max(speed.values())
            parts.append(f'<text x="10" y="{y + 12}">{row["subject"]}</text>')
            rivals = iter(RIVAL)
            for name, value in speed.items():
                color = COLORS.get(name) or next(rivals, "#9333ea")
                length = max(1, width * value / best)
                parts.append(f'<rect x="{label}" y="{y}" width="{length:.0f}" height="{bar - 2}" fill="{color}"/>')
                text = f'{name} {shown(row["medians"][name], row["unit"])}'
                parts.append(f'<text x="{label + length + 5:.0f}" y="{y + 10}" class="v">{text.replace("&", "&amp;")}</text>')
                y += bar
            y += gap
        y += gap
    style = "text{font:12px sans-serif;fill:#111}.h{font-weight:bold;font-size:14px}.v{font-size:11px;fill:#333}"
    total = label + width + 210
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {y}" width="{total}" height="{y}">'
            f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>' + "".join(parts) + "</svg>\n")


def curves(rows):
    """A panel for each number that grows, both axes logarithmic."""
    width, height, left, top = 420, 180, 80, 34
    parts, y = [], 0
    mine = [row for row in rows if row["suite"] == "growth"]
    for subject in dict.fromkeys(row["subject"] for row in mine):
        points = {}
        for row in (row for row in mine if row["subject"] == subject):
            at = float(row["measure"].split()[0].replace(",", ""))
            for name, value in row["medians"].items():
                points.setdefault(name, []).append((at, value, shown(value, row["unit"])))
        across = [math.log(x) for of in points.values() for x, _, _ in of]
        up = [math.log(value) for of in points.values() for _, value, _ in of]

        def place(x, value):
            fraction = lambda v, of: (math.log(v) - min(of)) / ((max(of) - min(of)) or 1)
            return left + width * fraction(x, across), y + top + height * (1 - fraction(value, up))

        parts.append(f'<text x="10" y="{y + 20}" class="h">{subject}</text>')
        parts.append(f'<rect x="{left}" y="{y + top}" width="{width}" height="{height}" fill="none" stroke="#d1d5db"/>')
        for x in sorted({x for of in points.values() for x, _, _ in of}):
            parts.append(f'<text x="{place(x, math.exp(min(up)))[0]:.0f}" y="{y + top + height + 14}" text-anchor="middle" class="v">{x:,.0f}</text>')
        extremes = {value: text for of in points.values() for _, value, text in of}
        for value in (min(extremes), max(extremes)):
            parts.append(f'<text x="{left - 4}" y="{place(math.exp(across[0]), value)[1] + 4:.0f}" text-anchor="end" class="v">{extremes[value]}</text>')
        rivals = iter(RIVAL)
        for number, (name, of) in enumerate(points.items()):
            color = COLORS.get(name) or next(rivals, "#9333ea")
            line = " ".join("{:.0f},{:.0f}".format(*place(x, value)) for x, value, _ in of)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
            parts.append(f'<text x="{left + width + 10}" y="{y + top + 14 + 16 * number}" fill="{color}" class="n">{name}</text>')
        y += top + height + 30
    style = "text{font:11px sans-serif}.h{font-weight:bold;font-size:14px;fill:#111}.v{fill:#333}.n{font-size:12px}"
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {max(y, 1)}" width="640" height="{max(y, 1)}">'
            f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>' + "".join(parts) + "</svg>\n")
