//! Finds out the hash of a whole base while nobody wants anything of the mount, so that the overlay knows its base
//! by more than samples and a time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use imgfs::device::overlay::Overlay;

/// How long nothing has to be asked for before the base is read.
const QUIET: Duration = Duration::from_secs(2);
/// Between two pieces: whoever else reads from the same disk comes first.
const BREATH: Duration = Duration::from_millis(2);

/// Reads in the background until it is dropped, which waits for one piece at the most.
pub struct Learner {
    thread: Option<JoinHandle<()>>,
    stop: Option<mpsc::Sender<()>>,
}

impl Learner {
    /// `requests` counts what is asked of the mount.
    pub fn start(overlay: Arc<Overlay>, requests: Arc<AtomicU64>) -> Self {
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut seen = None;
            let learned = overlay.hash_base(&mut |_| {
                loop {
                    let pause = if seen == Some(requests.load(Ordering::Relaxed)) { BREATH } else { QUIET };
                    let before = requests.load(Ordering::Relaxed);
                    if stopped.recv_timeout(pause) != Err(mpsc::RecvTimeoutError::Timeout) {
                        return false;
                    }
                    seen = Some(before);
                    if before == requests.load(Ordering::Relaxed) {
                        return true;
                    }
                }
            });
            match learned {
                Ok(Some(_)) => log::debug!("the hash of the whole base is known now"),
                Ok(None) => {}
                Err(error) => log::debug!("the base is not hashed: {error}"),
            }
        });
        Self { thread: Some(thread), stop: Some(stop) }
    }
}

impl Drop for Learner {
    fn drop(&mut self) {
        drop(self.stop.take());
        // A panic of it was logged, and harms nobody.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
