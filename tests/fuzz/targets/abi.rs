//! Calls of the C functions in any order, with any handles, and NULL wherever a pointer goes.

use std::ptr;

use once_cell::sync::Lazy;
use walrus_devnet::{BlockingDevnet, Devnet, Options};
use walrusds::internals::ffi::*;

use super::Input;

struct World {
    config: String,
    dirs: [tempfile::TempDir; 2],
    _net: BlockingDevnet,
}

static WORLD: Lazy<World> = Lazy::new(|| {
    let net = Devnet::start_blocking(Options {
        cheap_ids: true,
        ..Options::default()
    });
    let net = net.unwrap();
    let url = net.url();
    World {
        config: serde_json::json!({
            "publisherURL": url, "aggregatorURL": url, "indexPath": "index.sqlite",
        })
        .to_string(),
        dirs: [super::directory(), super::directory()],
        _net: net,
    }
});

/// Handles that calls gave, dead ones too.
#[derive(Default)]
struct Known {
    stores: Vec<u64>,
    queries: Vec<u64>,
    tokens: Vec<u64>,
    queues: Vec<u64>,
}

/// One of these handles, one of another kind, or any number.
fn handle(input: &mut Input<'_>, own: &[u64], other: &[u64]) -> u64 {
    let how = input.byte();
    let from = if how < 230 { own } else { other };
    if how >= 250 || from.is_empty() {
        return input.number();
    }
    from[usize::from(how) % from.len()]
}

/// A pointer and a length that go together, or that the contract allows to be refused.
fn slice<'a>(input: &mut Input<'a>) -> (*const u8, usize) {
    match input.byte() {
        255 => (ptr::null(), input.number() as usize),
        254 => (ptr::null(), 0),
        253 => (
            b"x".as_ptr(),
            isize::MAX as usize + 1 + usize::from(input.byte()),
        ),
        252 => (b"x".as_ptr(), 0),
        n => {
            let bytes = input.bytes(usize::from(n % 48));
            (bytes.as_ptr(), bytes.len())
        }
    }
}

/// A key as pointer and length, in a form that is known to work.
fn key(input: &mut Input<'_>) -> (*const u8, usize) {
    match input.byte() {
        n if n < 200 => {
            let key = ["/a", "/b", "/dir/c", "/\u{e9}"][usize::from(n) % 4];
            (key.as_ptr(), key.len())
        }
        _ => slice(input),
    }
}

/// `out`, or NULL now and then.
fn out<T>(input: &mut Input<'_>, out: &mut T) -> *mut T {
    if input.byte() >= 245 {
        ptr::null_mut()
    } else {
        out
    }
}

const EMPTY: walrusds_buf = walrusds_buf {
    data: ptr::null(),
    len: 0,
    owner: ptr::null_mut(),
};

/// Any sequence of calls gives codes that exist, never a panic, and leaves nothing unfreed.
#[allow(unsafe_code)]
pub fn calls(data: &[u8]) {
    let input = &mut Input(data);
    let world = &*WORLD;
    let mut known = Known::default();
    let (mut err, mut buf) = (NO_ERROR, EMPTY);
    let mut page = walrusds_page {
        entries: ptr::null(),
        len: 0,
        owner: ptr::null_mut(),
    };
    let (mut found, mut known_size, mut number) = (false, false, 0);
    // SAFETY: every pair is readable for its length, or one that the functions must refuse without
    // looking at it; outputs are live locals or NULL.
    unsafe {
        open(&mut known, &world.config, world.dirs[0].path());
        for _ in 0..32 {
            if input.is_empty() {
                break;
            }
            let what = input.byte() % 28;
            let call = walrusds_call {
                cancel: match input.byte() {
                    n if n < 200 => 0,
                    _ => handle(input, &known.tokens, &known.stores),
                },
                timeout_ms: [0, 0, 1, 50][usize::from(input.byte() % 4)],
                trace: ptr::null(),
            };
            let call = if input.flag() { &call } else { ptr::null() };
            let store = handle(input, &known.stores, &known.queries);
            let query = handle(input, &known.queries, &known.tokens);
            let token = handle(input, &known.tokens, &known.queues);
            let e = out(input, &mut err);
            let code = match what {
                // An open starts threads, and two stores are enough to test a mix-up between them.
                0 if known.stores.len() >= 2 => continue,
                0 => {
                    let dir = &world.dirs[usize::from(input.byte() % 2)];
                    open(&mut known, &world.config, dir.path());
                    continue;
                }
                1 => {
                    let (config, dir) = (slice(input), slice(input));
                    let handle = out(input, &mut number);
                    walrusds_open(config.0, config.1, dir.0, dir.1, call, handle, e)
                }
                2 => walrusds_close(store, e),
                3 => {
                    let config = slice(input);
                    walrusds_disk_spec(config.0, config.1, out(input, &mut buf), e)
                }
                4 => walrusds_config_keys(out(input, &mut buf), e),
                5 | 6 => {
                    let (k, v) = (key(input), slice(input));
                    walrusds_put(store, call, k.0, k.1, v.0, v.1, e)
                }
                7 | 8 => {
                    let (k, b) = (key(input), out(input, &mut buf));
                    walrusds_get(store, call, k.0, k.1, b, out(input, &mut found), e)
                }
                9 => {
                    let k = key(input);
                    walrusds_has(store, call, k.0, k.1, out(input, &mut found), e)
                }
                10 => {
                    let (k, n) = (key(input), out(input, &mut number));
                    walrusds_get_size(store, call, k.0, k.1, n, out(input, &mut found), e)
                }
                11 => {
                    let k = key(input);
                    walrusds_delete(store, call, k.0, k.1, e)
                }
                12 => {
                    let ops = ops(input);
                    match input.byte() {
                        255 => walrusds_batch_commit(store, call, ptr::null(), ops.len(), e),
                        254 => walrusds_batch_commit(store, call, ops.as_ptr(), usize::MAX, e),
                        _ => walrusds_batch_commit(store, call, ops.as_ptr(), ops.len(), e),
                    }
                }
                13 => {
                    let prefix = slice(input);
                    let conditions: Vec<_> = (0..input.byte() % 4)
                        .map(|_| {
                            let (kind, text) = (u32::from(input.byte() % 9), slice(input));
                            walrusds_key_condition {
                                kind,
                                text: text.0,
                                text_len: text.1,
                            }
                        })
                        .collect();
                    let conditions_len = match input.byte() {
                        255 => usize::MAX,
                        _ => conditions.len(),
                    };
                    let mut options = walrusds_query_options {
                        prefix: prefix.0,
                        prefix_len: prefix.1,
                        conditions: conditions.as_ptr(),
                        conditions_len,
                        descending: input.flag(),
                        keys_only: input.flag(),
                        offset: input.number(),
                        limit: input.number(),
                        without_sizes: input.flag(),
                    };
                    let options = out(input, &mut options);
                    let mut handle = 0;
                    let code =
                        walrusds_query_open(store, call, options, out(input, &mut handle), e);
                    known
                        .queries
                        .extend((code == WALRUSDS_OK).then_some(handle));
                    code
                }
                14 => walrusds_query_next(query, call, out(input, &mut page), e),
                15 => walrusds_query_close(query, e),
                16 => {
                    let prefix = slice(input);
                    walrusds_sync(store, call, prefix.0, prefix.1, e)
                }
                17 => walrusds_disk_usage(store, call, out(input, &mut number), e),
                18 => walrusds_metrics(store, out(input, &mut buf), e),
                19 => {
                    let b = out(input, &mut buf);
                    walrusds_log_next(store, b, out(input, &mut found), e)
                }
                20 => {
                    let mut handle = 0;
                    let code = walrusds_cancel_new(out(input, &mut handle), e);
                    known.tokens.extend((code == WALRUSDS_OK).then_some(handle));
                    code
                }
                21 if input.flag() => walrusds_cancel(token, e),
                21 => walrusds_cancel_free(token, e),
                22 => {
                    let k = key(input);
                    let (n, f) = (out(input, &mut number), out(input, &mut found));
                    walrusds_peek_size(store, k.0, k.1, n, f, out(input, &mut known_size), e)
                }
                23 => {
                    let mut lookups: Vec<_> = (0..input.byte() % 4)
                        .map(|_| {
                            let k = key(input);
                            walrusds_lookup {
                                key: k.0,
                                key_len: k.1,
                                size: 1,
                                code: 1,
                                found: true,
                            }
                        })
                        .collect();
                    let (keys, len) = (lookups.as_mut_ptr(), lookups.len());
                    match input.byte() {
                        255 => walrusds_get_sizes(store, call, ptr::null_mut(), len, e),
                        254 => walrusds_get_sizes(store, call, keys, usize::MAX, e),
                        _ => walrusds_get_sizes(store, call, keys, len, e),
                    }
                }
                24 => {
                    let queue = handle(input, &known.queues, &known.stores);
                    let k = key(input);
                    let (tag, b) = (input.number(), out(input, &mut buf));
                    let (f, done) = (out(input, &mut found), out(input, &mut known_size));
                    walrusds_get_start(store, call, k.0, k.1, queue, tag, b, f, done, e)
                }
                25 => {
                    let queue = handle(input, &known.queues, &known.stores);
                    let (ops, tag) = (ops(input), input.number());
                    let done = out(input, &mut known_size);
                    walrusds_batch_start(store, call, ops.as_ptr(), ops.len(), queue, tag, done, e)
                }
                26 => {
                    let queue = handle(input, &known.queues, &known.stores);
                    // The wait does not cover a completion that never comes.
                    let mut ended = [const { NO_COMPLETION }; 2];
                    let soon = walrusds_call {
                        timeout_ms: 5,
                        ..*call.as_ref().unwrap_or(&NO_CALL)
                    };
                    let max = usize::from(input.byte() % 3);
                    let (to, mut len) = (out(input, &mut ended), 0);
                    let len = out(input, &mut len);
                    let code = walrusds_queue_next(queue, &soon, to.cast(), max, len, e);
                    for completion in &mut ended {
                        walrusds_buf_free(&mut completion.value);
                        walrusds_error_free(&mut completion.error);
                    }
                    code
                }
                _ if input.flag() => {
                    let mut handle = 0;
                    let code = walrusds_queue_new(out(input, &mut handle), e);
                    known.queues.extend((code == WALRUSDS_OK).then_some(handle));
                    code
                }
                _ => {
                    let queue = handle(input, &known.queues, &known.stores);
                    walrusds_queue_close(queue, e)
                }
            };
            assert!(
                (WALRUSDS_OK..WALRUSDS_PANIC).contains(&code),
                "call {what} gave {code}"
            );
            assert_ne!(code, WALRUSDS_INTERNAL, "call {what}");
            if !e.is_null() {
                assert_eq!(err.code, code);
                assert_eq!(err.message.len == 0, code == WALRUSDS_OK);
            }
            // Freeing twice is fine, and so is freeing a buffer that was never filled.
            for _ in 0..1 + input.byte() % 2 {
                walrusds_error_free(&mut err);
                walrusds_buf_free(&mut buf);
                walrusds_page_free(&mut page);
            }
        }
        for token in known.tokens {
            walrusds_cancel_free(token, ptr::null_mut());
        }
        for queue in known.queues {
            walrusds_queue_close(queue, ptr::null_mut());
        }
        for store in known.stores {
            walrusds_close(store, ptr::null_mut());
        }
    }
}

/// Some operations, sensible or not.
fn ops(input: &mut Input<'_>) -> Vec<walrusds_op> {
    let count = input.byte() % 4;
    let op = |_| {
        let (kind, k, v) = (u32::from(input.byte() % 4), key(input), slice(input));
        walrusds_op {
            kind,
            key: k.0,
            key_len: k.1,
            value: v.0,
            value_len: v.1,
        }
    };
    (0..count).map(op).collect()
}

const NO_CALL: walrusds_call = walrusds_call {
    cancel: 0,
    timeout_ms: 0,
    trace: std::ptr::null(),
};

const NO_COMPLETION: walrusds_completion = walrusds_completion {
    tag: 0,
    found: false,
    value: EMPTY,
    error: NO_ERROR,
};

const NO_ERROR: walrusds_error = walrusds_error {
    code: WALRUSDS_OK,
    retryable: false,
    message: EMPTY,
};

#[allow(unsafe_code)]
unsafe fn open(known: &mut Known, config: &str, dir: &std::path::Path) {
    let dir = dir.to_str().unwrap();
    let mut handle = 0;
    // SAFETY: both strings are readable, and the outputs are live locals.
    let code = unsafe {
        walrusds_open(
            config.as_ptr(),
            config.len(),
            dir.as_ptr(),
            dir.len(),
            ptr::null(),
            &mut handle,
            ptr::null_mut(),
        )
    };
    assert_eq!(code, WALRUSDS_OK);
    known.stores.push(handle);
}
