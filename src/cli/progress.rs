//! A progress bar on standard error, where that is a terminal.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use imgfs::container::Progress;
use indicatif::{ProgressBar, ProgressStyle};

/// A bar of `total` bytes; silent when nobody is looking.
pub fn bar(total: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(total);
    let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} {wide_msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// Runs something that tells how far it is: bytes done, of how many.
pub fn with_bar<T>(run: impl FnOnce(&mut dyn FnMut(u64, u64)) -> T) -> T {
    let bar = bar(0);
    let result = run(&mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    result
}

/// Work that is over sooner is not worth a bar.
const PATIENCE: Duration = Duration::from_millis(500);

/// Shows how far a compressed image is indexed or unpacked; `None` when nobody is looking.
pub fn hook() -> Option<Progress> {
    if !std::io::stderr().is_terminal() {
        return None;
    }
    let state: Mutex<(Option<Instant>, Option<ProgressBar>)> = Mutex::default();
    Some(Progress(Arc::new(move |what, done, total| {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, shown) = &mut *state;
        if done >= total {
            if let Some(bar) = shown.take() {
                bar.finish_and_clear();
            }
            *since = None;
            return;
        }
        if since.get_or_insert_with(Instant::now).elapsed() < PATIENCE {
            return;
        }
        let bar = shown.get_or_insert_with(|| bar(total).with_message(what));
        bar.set_length(total);
        bar.set_position(done);
    })))
}
