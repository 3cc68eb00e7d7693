//! Metrics about this process from the operating system, read with each scrape: on Linux from `/proc`, elsewhere only
//! the time of the start.

use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// See the module.
#[derive(Debug)]
pub(super) struct Process {
    started: f64,
}

/// The figures of one scrape, in the units of their names. One that the system does not tell is absent.
#[derive(Debug, Default)]
struct Figures {
    cpu_seconds: Option<f64>,
    resident_bytes: Option<f64>,
    virtual_bytes: Option<f64>,
    most_virtual_bytes: Option<f64>,
    open_files: Option<f64>,
    most_files: Option<f64>,
    threads: Option<f64>,
}

impl Process {
    pub(super) fn new() -> Self {
        let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        Self { started: start_time().unwrap_or_else(now) }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut tell = |name: &str, help: &str, metric: &dyn Figure| metric.tell(&mut encoder, name, help);
        let Figures { cpu_seconds, resident_bytes, virtual_bytes, most_virtual_bytes, open_files, most_files, threads } =
            figures();
        if let Some(seconds) = cpu_seconds {
            // The encoder adds `_total`.
            tell(
                "process_cpu_seconds",
                "CPU time of all threads, for the process and the kernel",
                &ConstCounter::new(seconds),
            )?;
        }
        let gauges = [
            ("process_start_time_seconds", "When the process began, since the Unix epoch", Some(self.started)),
            ("process_resident_memory_bytes", "Memory in use", resident_bytes),
            ("process_virtual_memory_bytes", "Address space in use", virtual_bytes),
            ("process_virtual_memory_max_bytes", "How much address space there may be", most_virtual_bytes),
            ("process_open_fds", "Open files and connections", open_files),
            ("process_max_fds", "How many files and connections there may be", most_files),
            ("process_threads", "Threads of the operating system", threads),
        ];
        for (name, help, figure) in gauges {
            if let Some(figure) = figure {
                tell(name, help, &ConstGauge::new(figure))?;
            }
        }
        Ok(())
    }
}

/// A metric that has a value, and no name or help of its own.
trait Figure {
    fn tell(&self, encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str) -> Result<(), std::fmt::Error>;
}

impl<M: EncodeMetric> Figure for M {
    fn tell(&self, encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str) -> Result<(), std::fmt::Error> {
        self.encode(encoder.encode_descriptor(name, help, None, self.metric_type())?)
    }
}

#[cfg(target_os = "linux")]
fn start_time() -> Option<f64> {
    let stat = procfs::process::Process::myself().and_then(|process| process.stat()).ok()?;
    Some(float(procfs::boot_time_secs().ok()?) + float(stat.starttime) / float(procfs::ticks_per_second()))
}

#[cfg(target_os = "linux")]
fn figures() -> Figures {
    use procfs::process::LimitValue;

    let Ok(process) = procfs::process::Process::myself() else { return Figures::default() };
    let (stat, limits) = (process.stat().ok(), process.limits().ok());
    let limit = |value: LimitValue| match value {
        LimitValue::Value(value) => float(value),
        // As the Go client has it.
        LimitValue::Unlimited => float(u64::MAX),
    };
    Figures {
        cpu_seconds: stat.as_ref().map(|stat| float(stat.utime + stat.stime) / float(procfs::ticks_per_second())),
        resident_bytes: stat.as_ref().map(|stat| float(stat.rss * procfs::page_size())),
        virtual_bytes: stat.as_ref().map(|stat| float(stat.vsize)),
        most_virtual_bytes: limits.as_ref().map(|limits| limit(limits.max_address_space.soft_limit)),
        open_files: open_files(),
        most_files: limits.as_ref().map(|limits| limit(limits.max_open_files.soft_limit)),
        threads: stat.as_ref().and_then(|stat| u64::try_from(stat.num_threads).ok()).map(float),
    }
}

/// The library counts the folder itself on kernels before 6.2.
#[cfg(target_os = "linux")]
fn open_files() -> Option<f64> {
    let count = std::fs::read_dir("/proc/self/fd").ok()?.count();
    // One of them is the directory itself.
    u64::try_from(count.saturating_sub(1)).ok().map(float)
}

/// Converts to the numbers of metrics. Every Prometheus client loses the same digits of a large number.
#[cfg(target_os = "linux")]
#[allow(clippy::cast_precision_loss)]
fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(not(target_os = "linux"))]
fn start_time() -> Option<f64> {
    None
}

#[cfg(not(target_os = "linux"))]
fn figures() -> Figures {
    Figures::default()
}
