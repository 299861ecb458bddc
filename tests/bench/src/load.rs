//! HTTP clients of a daemon, each of which sends its next request when the last one is answered.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{ensure, Context as _, Result};
use ureq::Agent;

/// One request and the number of bytes that must come back.
#[derive(Debug, Clone)]
pub struct Request {
    pub url: String,
    pub verb: Verb,
    pub len: usize,
}

#[derive(Debug, Clone, Copy)]
pub enum Verb {
    /// From the gateway: the whole file.
    Get,
    /// From the gateway: this number of bytes from this offset.
    Range(u64),
    /// From the RPC API, which knows no other form.
    Post,
}

/// Sends all requests, `clients` at a time, each client over a connection of its own.
pub fn run(clients: usize, requests: &[Request]) -> Result<()> {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..clients)
            .map(|_| {
                scope.spawn(|| {
                    let agent: Agent = Agent::config_builder().proxy(None).build().into();
                    while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
                        send(&agent, request).with_context(|| request.url.clone())?;
                    }
                    Ok(())
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("a client does not panic"))
    })
}

fn send(agent: &Agent, request: &Request) -> Result<()> {
    let len = request.len as u64;
    let mut response = match request.verb {
        Verb::Get => agent.get(&request.url).call(),
        Verb::Range(from) => agent
            .get(&request.url)
            .header("Range", format!("bytes={from}-{}", from + len - 1))
            .call(),
        Verb::Post => agent.post(&request.url).send_empty(),
    }?;
    let body = response
        .body_mut()
        .with_config()
        .limit(len + 1)
        .read_to_vec()?;
    ensure!(
        body.len() == request.len,
        "{} bytes came instead of {len}",
        body.len()
    );
    Ok(())
}

/// The same numbers below `end` in every run.
pub fn random(seed: u64, end: u64) -> impl Iterator<Item = u64> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end.max(1)
    })
}
