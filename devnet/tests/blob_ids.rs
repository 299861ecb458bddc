//! True blob IDs against vectors made with the real encoder.

use std::time::Instant;

use serde_json::Value;
use walrus_devnet::Geometry;

fn content(spec: &str, length: usize) -> Vec<u8> {
    if let Some(text) = spec.strip_prefix("utf8:") {
        return text.as_bytes().to_vec();
    }
    match spec {
        "zeros" => vec![0; length],
        "i*7+3" => (0..length).map(|i| (i * 7 + 3) as u8).collect(),
        other => panic!("unknown content {other}"),
    }
}

#[test]
fn vectors() {
    let vectors: Value = serde_json::from_str(include_str!("vectors/blobid.json")).unwrap();
    let vectors = vectors["vectors"].as_array().unwrap();
    assert!(vectors.len() > 15);
    let mut large = 0;
    for vector in vectors {
        let shards = vector["n_shards"].as_u64().unwrap() as u16;
        let length = vector["length"].as_u64().unwrap() as usize;
        if shards >= 1000 && cfg!(debug_assertions) {
            // Three million hashes each: without optimisation the test checks only one of them.
            large += 1;
            if large > 1 {
                continue;
            }
        }
        let data = content(vector["content"].as_str().unwrap(), length);
        let start = Instant::now();
        let id = Geometry::new(shards).unwrap().blob_id(&data);
        println!("n={shards} {length} bytes: {:?}", start.elapsed());
        match vector["error"].as_str() {
            Some(error) => assert_eq!(id.unwrap_err().to_string(), error),
            None => assert_eq!(id.unwrap().to_string(), vector["blob_id"], "{vector}"),
        }
    }
}

#[test]
#[ignore = "large; run optimised: cargo test --release -- --ignored"]
fn ten_mebibytes_and_speed() {
    let g = Geometry::new(1000).unwrap();
    let data = content("i*7+3", 10 << 20);
    assert_eq!(
        g.blob_id(&data).unwrap().to_string(),
        "yRc1ghyHt6QHsRJKi3QUhrpMCn1jvZ_8cMy8p5-ZtYg"
    );
    let data = content("i*7+3", 64 << 20);
    let start = Instant::now();
    g.blob_id(&data).unwrap();
    println!("64 MiB: {:?}", start.elapsed());
}
