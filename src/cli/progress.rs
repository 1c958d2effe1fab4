//! A progress bar on standard error, where that is a terminal.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use imgfs::container::Progress;
use indicatif::{ProgressBar, ProgressStyle};

const OF_A_TOTAL: &str = "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} {wide_msg}";
/// What is shown while nobody knows how much there is to do.
const WITHOUT_TOTAL: &str = "{spinner} {wide_msg}";

/// A bar of `total` bytes, 0 as long as that is unknown; silent when nobody is looking.
pub fn bar(total: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    bar.set_style(style(WITHOUT_TOTAL));
    set_total(&bar, total);
    bar
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Tells a bar how much there is to do.
pub fn set_total(bar: &ProgressBar, total: u64) {
    if total > 0 && bar.length() == Some(0) {
        bar.set_style(style(OF_A_TOTAL));
    }
    bar.set_length(total);
}

/// Tells a bar that there is more to do.
pub fn add(bar: &ProgressBar, more: u64) {
    set_total(bar, bar.length().unwrap_or(0).saturating_add(more));
}

/// Runs something that tells how far it is: bytes done, of how many.
pub fn with_bar<T>(run: impl FnOnce(&mut dyn FnMut(u64, u64)) -> T) -> T {
    let bar = bar(0);
    let result = run(&mut |done, total| {
        set_total(&bar, total);
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
        set_total(bar, total);
        bar.set_position(done);
    })))
}
