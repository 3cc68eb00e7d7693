//! A private Redis whose clock the test sets: it jumps forwards, stands still, and runs backwards, and keys expire by it.
//!
//! A small shared library, loaded before the C library, answers what Redis asks of the clock from eight bytes of a mapped file
//! (microseconds since 1970; 0 is the system's time). The clock is of the whole server: one case at a time uses it.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use tollgate::private_redis::{self, PrivateRedis};

use super::{Step, on_runtime_async, scratch};

/// Compiled with the linker that Rust needs as well. Only the time of day is set: time that measures durations goes on.
const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *set_us;

__attribute__((constructor)) static void map_clock(void) {
    const char *path = getenv("TIMED_REDIS_CLOCK");
    int file = path ? open(path, O_RDONLY) : -1;
    void *mapped = file < 0 ? MAP_FAILED : mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
    if (mapped != MAP_FAILED) set_us = mapped;
}

int clock_gettime(clockid_t id, struct timespec *to) {
    int64_t us = set_us ? *set_us : 0;
    if (us == 0 || (id != CLOCK_REALTIME && id != CLOCK_REALTIME_COARSE)) return syscall(SYS_clock_gettime, id, to);
    to->tv_sec = us / 1000000;
    to->tv_nsec = us % 1000000 * 1000;
    return 0;
}

int gettimeofday(struct timeval *restrict to, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    to->tv_sec = now.tv_sec;
    to->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *to) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to) *to = now.tv_sec;
    return now.tv_sec;
}
"#;

/// Ends when it is dropped.
pub struct TimedRedis {
    redis: PrivateRedis,
    clock: Mutex<File>,
}

impl TimedRedis {
    /// Starts one, at the system's time.
    pub async fn start() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let directory = scratch(&format!("timed-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir_all(&directory).unwrap();
        let (library, clock) = (directory.join("clock.so"), directory.join("clock"));
        compile(&directory.join("clock.c"), &library);
        std::fs::write(&clock, 0_i64.to_ne_bytes()).unwrap();
        let program = directory.join("redis-server");
        let script = format!(
            "#!/bin/sh\nTIMED_REDIS_CLOCK='{}' LD_PRELOAD='{}' exec \"$(command -v redis-server || command -v valkey-server)\" \"$@\"\n",
            clock.display(),
            library.display()
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let options = private_redis::Options {
            data_dir: directory.join("data"),
            redis_server: Some(program),
            ..private_redis::Options::default()
        };
        let redis = on_runtime_async(async move { private_redis::start(options).await.expect("Redis starts") }).await;
        let file = File::options().read(true).write(true).open(clock).unwrap();
        Self { redis, clock: Mutex::new(file) }
    }

    pub fn url(&self) -> String {
        self.redis.url()
    }

    /// Sets the clock, which stands still until it is set again. `Step::By` counts from where it stands.
    pub fn set_clock(&self, to: Step) {
        let file = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stands = [0; 8];
        file.read_exact_at(&mut stands, 0).unwrap();
        let us = match to {
            Step::To(ms) => ms * 1000,
            Step::By(duration) => i64::from_ne_bytes(stands) + i64::try_from(duration.as_micros()).unwrap(),
        };
        file.write_all_at(&us.to_ne_bytes(), 0).unwrap();
    }
}

fn compile(source: &Path, library: &Path) {
    std::fs::write(source, CLOCK).unwrap();
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC", "-O1", "-o"]).arg(library).arg(source);
    let output = command.output().expect("cc is installed: Rust links with it");
    assert!(output.status.success(), "cc: {}", String::from_utf8_lossy(&output.stderr));
}
