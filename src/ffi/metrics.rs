//! The metrics of a datastore.

use super::buf::{clear, walrusds_buf};
use super::entry::{entry, walrusds_error};
use super::{walrusds_handle, INSTANCES};

/// Counters since open: a JSON object, name to number.
#[no_mangle]
pub unsafe extern "C" fn walrusds_metrics(
    handle: walrusds_handle,
    out: *mut walrusds_buf,
    err: *mut walrusds_error,
) -> i32 {
    unsafe {
        entry(err, || {
            clear("out", out, walrusds_buf::EMPTY)?;
            let instance = INSTANCES.get(handle)?;
            let counters = instance.store.metrics();
            let json: serde_json::Map<String, serde_json::Value> = counters
                .into_iter()
                .map(|(name, n)| (name.to_owned(), n.into()))
                .collect();
            out.write(walrusds_buf::new(
                serde_json::Value::from(json).to_string().into(),
            ));
            Ok(())
        })
    }
}

/// All metrics as OpenMetrics text (version 1.0.0, UTF-8): counters, gauges and histograms since
/// open, with names that begin with `walrusds_`. docs/metrics.md describes them. Never waits: what
/// the index must be asked for is as the node's own tasks read it last.
#[no_mangle]
pub unsafe extern "C" fn walrusds_open_metrics(
    handle: walrusds_handle,
    out: *mut walrusds_buf,
    err: *mut walrusds_error,
) -> i32 {
    unsafe {
        entry(err, || {
            clear("out", out, walrusds_buf::EMPTY)?;
            let instance = INSTANCES.get(handle)?;
            let text = instance.store.open_metrics();
            out.write(walrusds_buf::new(text.into()));
            Ok(())
        })
    }
}
