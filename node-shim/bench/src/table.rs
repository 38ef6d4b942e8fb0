//! The table: ours beside the peers', with medians, spread and ratio.

use std::fmt::Write;

use crate::figure::{Bar, Better, Figure, Row, Statistic};
use crate::sample::{OURS, Sample, Spread};

const HEADINGS: [&str; 7] = ["figure", "unit", OURS, "best peer", "ratio", "bar", ""];

/// The samples of one figure.
struct Measured<'a> {
    figure: Figure,
    ours: Option<Spread>,
    peers: Vec<(&'a str, Spread)>,
}

/// The table of all samples.
pub(crate) fn render(samples: &[Sample], markdown: bool) -> String {
    let rows: Vec<_> = Figure::ALL
        .iter()
        .flat_map(|figure| rows(&measured(*figure, samples)))
        .collect();
    if markdown { as_markdown(&rows) } else { as_text(&rows) }
}

fn measured(figure: Figure, samples: &[Sample]) -> Measured<'_> {
    let of = |monitor: &str| {
        let mine = samples
            .iter()
            .filter(|sample| sample.figure == figure && sample.monitor == monitor);
        Spread::of(mine.map(|sample| sample.value))
    };
    let mut names: Vec<&str> = samples.iter().map(|sample| sample.monitor.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names.retain(|name| *name != OURS);
    let peers = names.into_iter().filter_map(|name| Some((name, of(name)?))).collect();
    Measured {
        figure,
        ours: of(OURS),
        peers,
    }
}

fn rows(measured: &Measured<'_>) -> Vec<[String; 7]> {
    let Measured { figure, ours, peers } = measured;
    let Some(ours) = ours else {
        return Vec::new();
    };
    let rows = figure.rows().iter().map(|Row { title, statistic, bar }| {
        let value = ours.get(*statistic);
        let best = best(figure.better(), *statistic, peers);
        let ratio = best.map(|(_, peer)| value / peer.get(*statistic));
        [
            (*title).to_owned(),
            figure.unit().to_owned(),
            shown(ours, *statistic),
            best.map_or_else(String::new, |(name, peer)| {
                format!("{} {name}", shown(peer, *statistic))
            }),
            ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}")),
            bar_text(*bar, figure.unit()),
            verdict(*bar, value, ratio).to_owned(),
        ]
    });
    rows.collect()
}

/// The peer that is ahead of the others.
fn best<'a>(better: Better, statistic: Statistic, peers: &'a [(&'a str, Spread)]) -> Option<(&'a str, &'a Spread)> {
    let order = |left: &&(&str, Spread), right: &&(&str, Spread)| {
        let order = left.1.get(statistic).total_cmp(&right.1.get(statistic));
        match better {
            Better::Lower => order,
            Better::Higher => order.reverse(),
        }
    };
    peers.iter().min_by(order).map(|(name, spread)| (*name, spread))
}

/// The statistic, and in brackets how far the samples reach and how many there are.
fn shown(spread: &Spread, statistic: Statistic) -> String {
    let value = number(spread.get(statistic));
    if spread.count() == 1 {
        return value;
    }
    format!(
        "{value} ({}..{}, {})",
        number(spread.min()),
        number(spread.max()),
        spread.count()
    )
}

/// Three digits that count.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        0.0..10.0 => 2,
        10.0..100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

fn bar_text(bar: Bar, unit: &str) -> String {
    match bar {
        Bar::AtMost(limit) => format!("≤{} {unit}", number(limit).trim_end_matches(".00").to_owned()),
        Bar::RatioAtMost(limit) => format!("ratio ≤{limit:.1}"),
        Bar::RatioAtLeast(limit) => format!("ratio ≥{limit:.1}"),
        Bar::None => String::new(),
    }
}

/// Whether the bar is met, as far as that can be said.
fn verdict(bar: Bar, value: f64, ratio: Option<f64>) -> &'static str {
    let met = match (bar, ratio) {
        (Bar::AtMost(limit), _) => value <= limit,
        (Bar::RatioAtMost(limit), Some(ratio)) => ratio <= limit,
        (Bar::RatioAtLeast(limit), Some(ratio)) => ratio >= limit,
        (Bar::RatioAtMost(_) | Bar::RatioAtLeast(_), None) | (Bar::None, _) => return "",
    };
    if met { "met" } else { "missed" }
}

fn as_markdown(rows: &[[String; 7]]) -> String {
    let mut text = format!("| {} |\n|---|---|---|---|---|---|---|\n", HEADINGS.join(" | "));
    for row in rows {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text
}

fn as_text(rows: &[[String; 7]]) -> String {
    let mut widths = HEADINGS.map(|heading| heading.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; 7]| {
        let cells = cells
            .into_iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    let mut text = line(HEADINGS);
    for row in rows {
        text.push_str(&line(row.each_ref().map(String::as_str)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(figure: Figure, monitor: &str, value: f64) -> Sample {
        Sample {
            figure,
            monitor: monitor.to_owned(),
            value,
        }
    }

    #[test]
    fn ours_stands_beside_the_best_peer() {
        let samples = [
            sample(Figure::Read1, OURS, 300.0),
            sample(Figure::Read1, "slow", 100.0),
            sample(Figure::Read1, OURS, 100.0),
            sample(Figure::Read1, "fast", 250.0),
            sample(Figure::Read1, OURS, 200.0),
            sample(Figure::Boot, "slow", 2.0),
            sample(Figure::Boot, "fast", 1.0),
            sample(Figure::Boot, OURS, 0.7),
            sample(Figure::Memory, OURS, 5000.0),
            sample(Figure::Write1, "alone", 1.0),
        ];
        let text = render(&samples, true);
        let rows: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "| native: memory of the VMM beyond guest RAM, 1 vCPU, 128 MiB | KiB | 5000 |  |  | ≤4096 KiB | missed |",
                "| native: 4 KiB random read, depth 1 | IO/s | 200 (100..300, 3) | 250 fast | 0.80 | ratio ≥1.0 | missed |",
                "| emulated: exec to init, unmodified Debian kernel | s | 0.70 | 1.00 fast | 0.70 | ratio ≤0.8 | met |",
            ]
        );
    }

    #[test]
    fn one_figure_can_have_two_rows() {
        let samples: Vec<_> = (1..=40)
            .map(|value| sample(Figure::Start, OURS, f64::from(value) / 7.0))
            .collect();
        let text = render(&samples, false);
        let verdicts: Vec<_> = text
            .lines()
            .skip(1)
            .map(|line| line.rsplit("  ").next().unwrap())
            .collect();
        assert_eq!(verdicts, ["met", "missed"], "{text}");
    }
}
