//! The losses of `log.jsonl` as a picture: one panel a quantity, smoothed, as SVG.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};

use super::checkpoint::write_atomically;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 180.0;
const MARGIN: f64 = 48.0;
/// Points a panel shows; more would only fatten the line.
const POINTS: usize = 360;

/// Draws every number of `log` over its steps into `picture`.
pub fn draw(log: &Path, picture: &Path) -> Result<()> {
    let text = std::fs::read_to_string(log).with_context(|| format!("while reading {}", log.display()))?;
    let mut series: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for line in text.lines() {
        let Ok(serde_json::Value::Object(line)) = serde_json::from_str(line) else { continue };
        let Some(step) = line.get("step").and_then(serde_json::Value::as_f64) else { continue };
        for (name, value) in line {
            if let (false, Some(value)) = (name == "step", value.as_f64()) {
                series.entry(name).or_default().push((step, value));
            }
        }
    }
    let mut svg = String::new();
    let height = HEIGHT * series.len().max(1) as f64;
    writeln!(svg, r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12">"#)?;
    writeln!(svg, r#"<rect width="100%" height="100%" fill="white"/>"#)?;
    for (row, (name, points)) in series.iter().enumerate() {
        panel(&mut svg, HEIGHT * row as f64, name, &thin(points))?;
    }
    svg.push_str("</svg>\n");
    Ok(write_atomically(picture, svg.as_bytes())?)
}

/// Means of equal stretches, at most `POINTS` of them.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let size = points.len().div_ceil(POINTS).max(1);
    let mean = |chunk: &[(f64, f64)]| {
        let n = chunk.len() as f64;
        (chunk.iter().map(|p| p.0).sum::<f64>() / n, chunk.iter().map(|p| p.1).sum::<f64>() / n)
    };
    points.chunks(size).map(mean).collect()
}

fn panel(svg: &mut String, top: f64, name: &str, points: &[(f64, f64)]) -> Result<()> {
    let range =
        |values: &mut dyn Iterator<Item = f64>| values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    let (x0, x1) = range(&mut points.iter().map(|p| p.0));
    let (y0, y1) = range(&mut points.iter().map(|p| p.1));
    let (plot_w, plot_h) = (WIDTH - 2.0 * MARGIN, HEIGHT - MARGIN);
    let x = |v: f64| MARGIN + (v - x0) / (x1 - x0).max(1e-12) * plot_w;
    let y = |v: f64| top + 24.0 + (y1 - v) / (y1 - y0).max(1e-12) * plot_h;
    let (left, bottom) = (MARGIN, top + 24.0 + plot_h);
    writeln!(svg, r##"<path d="M{left} {} V{bottom} H{}" fill="none" stroke="#999"/>"##, top + 24.0, MARGIN + plot_w)?;
    writeln!(svg, r#"<text x="{left}" y="{}" font-weight="bold">{name}</text>"#, top + 16.0)?;
    writeln!(svg, r#"<text x="{}" y="{}" text-anchor="end">{y1:.3}</text>"#, left - 4.0, top + 32.0)?;
    writeln!(svg, r#"<text x="{}" y="{bottom}" text-anchor="end">{y0:.3}</text>"#, left - 4.0)?;
    writeln!(svg, r#"<text x="{}" y="{}" text-anchor="end">step {x1:.0}</text>"#, MARGIN + plot_w, bottom + 14.0)?;
    let line: Vec<String> = points.iter().map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
    writeln!(svg, r##"<polyline points="{}" fill="none" stroke="#0a62a8" stroke-width="1.5"/>"##, line.join(" "))?;
    Ok(())
}
