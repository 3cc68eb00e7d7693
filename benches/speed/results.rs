//! What was measured: per case and metric the figure of each round. A report takes medians.

use std::collections::BTreeMap;

use anyhow::Result;

/// Every figure.
#[derive(Debug, Default)]
pub struct Results {
    figures: BTreeMap<String, BTreeMap<String, Vec<f64>>>,
}

impl Results {
    /// Adds the figure of another round.
    pub fn add(&mut self, case: &str, metric: &str, figure: f64) {
        self.figures.entry(case.to_owned()).or_default().entry(metric.to_owned()).or_default().push(figure);
    }

    /// The median of what was measured; none if nothing was.
    pub fn median(&self, case: &str, metric: &str) -> Option<f64> {
        let mut figures = self.figures.get(case)?.get(metric)?.clone();
        figures.sort_by(f64::total_cmp);
        let (low, high) = (figures.get((figures.len() - 1) / 2)?, figures.get(figures.len() / 2)?);
        Some(f64::midpoint(*low, *high))
    }

    /// The least and the largest.
    pub fn range(&self, case: &str, metric: &str) -> Option<(f64, f64)> {
        let figures = self.figures.get(case)?.get(metric)?;
        let least = figures.iter().copied().min_by(f64::total_cmp)?;
        Some((least, figures.iter().copied().max_by(f64::total_cmp)?))
    }

    /// Every figure, in the order in which they were measured.
    pub fn all(&self, case: &str, metric: &str) -> Option<&[f64]> {
        Some(self.figures.get(case)?.get(metric)?)
    }

    /// The latest figure.
    pub fn last(&self, case: &str, metric: &str) -> Option<f64> {
        self.all(case, metric)?.last().copied()
    }

    /// The names of the cases that begin so, in alphabetical order.
    pub fn cases<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.figures.keys().map(String::as_str).filter(move |name| name.starts_with(prefix))
    }

    /// What was measured of a case, in alphabetical order.
    pub fn metrics(&self, case: &str) -> impl Iterator<Item = &str> {
        self.figures.get(case).into_iter().flat_map(|metrics| metrics.keys().map(String::as_str))
    }

    /// Every figure of every round, as JSON.
    pub fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(&self.figures)?)
    }
}
