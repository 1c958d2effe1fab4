//! Work on every core whose results are taken in order.

use std::sync::{Condvar, Mutex, PoisonError, mpsc};

use anyhow::Result;
use imgfs::cache::lock;

/// Number of workers.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Works on all jobs with every core, and takes the results in the jobs' order. No more than `ahead`
/// results a core wait for the one that comes next.
pub fn in_order<J: Send, T: Send>(
    jobs: impl Iterator<Item = J> + Send,
    ahead: usize,
    work: impl Fn(J) -> T + Sync,
    take: &mut dyn FnMut(T) -> Result<()>,
) -> Result<()> {
    let workers = cores();
    let window = workers.saturating_mul(ahead).max(1);
    let jobs = Mutex::new(jobs.enumerate());
    // How many results were taken; `None` when nobody takes more.
    let taken = (Mutex::new(Some(0usize)), Condvar::new());
    let (send, receive) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..workers {
            let (send, jobs, work, taken) = (send.clone(), &jobs, &work, &taken);
            scope.spawn(move || {
                loop {
                    let next = lock(jobs).next();
                    let Some((at, job)) = next else { return };
                    let too_far = |done: &mut Option<usize>| done.is_some_and(|done| at >= done + window);
                    let done = taken.1.wait_while(lock(&taken.0), too_far).unwrap_or_else(PoisonError::into_inner);
                    if done.is_none() {
                        return;
                    }
                    drop(done);
                    if send.send((at, work(job))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        let mut waiting = std::collections::BTreeMap::new();
        let mut expected = 0;
        let mut outcome = Ok(());
        // The receiver is owned here, so that a failure ends the workers as well.
        'all: for (at, result) in receive {
            waiting.insert(at, result);
            while let Some(result) = waiting.remove(&expected) {
                expected += 1;
                outcome = take(result);
                if outcome.is_err() {
                    break 'all;
                }
                *lock(&taken.0) = Some(expected);
                taken.1.notify_all();
            }
        }
        *lock(&taken.0) = None;
        taken.1.notify_all();
        outcome
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_whichever_worker_is_first() {
        let jobs: Vec<u64> = (0..500).collect();
        let mut seen = Vec::new();
        let work = |job: &u64| {
            std::thread::sleep(std::time::Duration::from_micros(job * 7 % 50));
            *job
        };
        in_order(jobs.iter(), 4, work, &mut |job| {
            let _: () = seen.push(job);
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, jobs);
    }

    #[test]
    fn a_failure_of_the_reader_ends_the_workers() {
        let jobs: Vec<u64> = (0..100_000).collect();
        assert!(in_order(jobs.iter(), 64, |job| *job, &mut |_| anyhow::bail!("full")).is_err());
    }
}
