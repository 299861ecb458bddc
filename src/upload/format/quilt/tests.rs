use data_encoding::{BASE32_NOPAD, HEXLOWER};
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use walrus_devnet::{make_quilt, read_quilt, Geometry, QuiltMember};

use super::*;

const KIB: u64 = 1 << 10;

struct Text(String, Bytes, bool);

impl Parcel for Text {
    fn key(&self) -> &str {
        &self.0
    }

    fn len(&self) -> u64 {
        self.1.len() as u64
    }

    fn is_dag_pb(&self) -> bool {
        self.2
    }

    fn append_to(&self, body: &mut Body) {
        body.push(self.1.clone());
    }
}

fn key(number: u64, digest: usize) -> String {
    let digest_of = Sha256::digest(number.to_le_bytes());
    let hash = [&[0x12, digest as u8], &digest_of[..digest]].concat();
    format!("/{}", BASE32_NOPAD.encode(&hash))
}

fn pattern(len: usize, seed: usize) -> Bytes {
    (0..len).map(|i| (i * 7 + seed) as u8).collect()
}

fn lengths(blocks: &[(u64, u64)]) -> Vec<Lengths> {
    let each = blocks
        .iter()
        .flat_map(|(count, len)| (0..*count).map(|_| *len));
    let each = each.enumerate();
    each.map(|(number, len)| Lengths::of(&key(number as u64, 32), len).unwrap())
        .collect()
}

async fn made(plan: &Plan, blocks: &[Text]) -> (Bytes, Layout) {
    let (body, layout) = plan.lay_out(blocks).await.unwrap();
    (body.collect().await.unwrap(), layout)
}

/// The layouts of the real encoder, of members without tags.
#[tokio::test]
async fn quilts_are_those_of_the_real_encoder() {
    let vectors = include_str!("../../../../devnet/tests/vectors/quilt.json");
    let vectors: serde_json::Value = serde_json::from_str(vectors).unwrap();
    let mut compared = 0;
    for vector in vectors["vectors"].as_array().unwrap() {
        let name = vector["name"].as_str().unwrap();
        let members = vector["blobs"].as_array().unwrap();
        let tagged = |member: &serde_json::Value| !member["tags"].as_object().unwrap().is_empty();
        if members.iter().any(tagged) {
            continue;
        }
        let n_shards = u32::try_from(vector["n_shards"].as_u64().unwrap()).unwrap();
        let text = |member: &serde_json::Value| {
            let seed = member["content"].as_str().unwrap()[4..].parse().unwrap();
            let len = usize::try_from(member["length"].as_u64().unwrap()).unwrap();
            Text(String::new(), pattern(len, seed), false)
        };
        let blocks: Vec<Text> = members.iter().map(text).collect();
        let names = members
            .iter()
            .map(|m| m["identifier"].as_str().unwrap().to_owned());
        let names: Vec<String> = names.collect();
        let lengths: Vec<Lengths> = blocks
            .iter()
            .zip(&names)
            .map(|(block, name)| Lengths {
                name: name.len() as u64,
                block: block.len(),
            })
            .collect();
        let members: Vec<u64> = lengths.iter().map(|one| one.member()).collect();
        let matrix = Matrix::least(n_shards, index_len(&lengths), &members).unwrap();
        let plan = Plan::within(matrix, &lengths, names.clone()).unwrap();
        let (quilt, layout) = made(&plan, &blocks).await;
        assert_eq!(quilt.len() as u64, vector["quilt_length"].as_u64().unwrap());
        let hash = HEXLOWER.encode(&Sha256::digest(&quilt));
        assert_eq!(hash, vector["quilt_sha256"].as_str().unwrap(), "{name}");
        let id = vector["quilt_id"].as_str().unwrap();
        for patch in vector["patches"].as_array().unwrap() {
            let at = names.iter().position(|n| *n == patch["identifier"]);
            let place = layout.places[at.unwrap()];
            let patch_id = place.columns.unwrap().patch_id(id);
            assert_eq!(patch_id.as_deref(), patch["patch_id"].as_str(), "{name}");
            assert_eq!(place.len, blocks[at.unwrap()].len());
        }
        compared += 1;
    }
    assert!(compared >= 2, "{compared} vectors");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Of any blocks on any network, the local Walrus makes the same bytes, and finds each block in
    /// the columns of its place under its CID.
    #[test]
    fn the_local_walrus_reads_what_is_laid_out(
        n_shards in prop_oneof![Just(10_u16), Just(31), Just(100), Just(1000)],
        lens in proptest::collection::vec(prop_oneof![0..40_usize, 0..3_000_usize, 0..30_000_usize], 1..60),
        digest in 20..=32_usize,
    ) {
        let geometry = Geometry::new(n_shards).unwrap();
        let text = |(number, len): (usize, &usize)| {
            let key = key(number as u64, digest);
            Text(key, pattern(*len, number), number % 3 == 0)
        };
        let blocks: Vec<Text> = lens.iter().enumerate().map(text).collect();
        let lengths: Vec<Lengths> = blocks
            .iter()
            .map(|block| Lengths::of(&block.0, block.len()).unwrap())
            .collect();
        let members: Vec<u64> = lengths.iter().map(|one| one.member()).collect();
        let names: Vec<String> = blocks.iter().map(|block| cid(block).unwrap()).collect();
        for (name, one) in names.iter().zip(&lengths) {
            prop_assert_eq!(name.len() as u64, one.name);
        }
        let theirs = names.iter().zip(&blocks).map(|(name, block)| QuiltMember {
            identifier: name.clone(),
            tags: Default::default(),
            columns: 0..0,
            data: block.1.clone(),
        });
        let theirs = make_quilt(geometry, &theirs.collect::<Vec<_>>());
        let Some(matrix) = Matrix::least(n_shards.into(), index_len(&lengths), &members) else {
            prop_assert!(theirs.is_err());
            return Ok(());
        };
        prop_assert_eq!(Matrix::of(matrix.len(), n_shards.into()), Some(matrix));
        let plan = Plan::within(matrix, &lengths, names.clone()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (quilt, layout) = runtime.block_on(made(&plan, &blocks));
        prop_assert_eq!(layout.len, quilt.len() as u64);
        prop_assert!(quilt == theirs.unwrap(), "the publisher makes another quilt");
        let found = read_quilt(geometry, &quilt).expect("a quilt");
        prop_assert_eq!(found.len(), blocks.len());
        for ((name, block), place) in names.iter().zip(&blocks).zip(&layout.places) {
            let member = found.iter().find(|member| member.identifier == *name).unwrap();
            prop_assert!(member.data == block.1);
            let columns = Columns::new(member.columns.start, member.columns.end);
            prop_assert_eq!(place.columns, columns);
            prop_assert_eq!(place.len, block.len());
            let taken_out = matrix.member(&quilt, columns.unwrap()).expect("a member");
            prop_assert!(taken_out == block.1);
        }
    }

    /// No quilt that is made costs more than it may.
    #[test]
    fn a_quilt_costs_hardly_more_than_its_blocks(
        lens in proptest::collection::vec(prop_oneof![0..9_000_u64, Just(256 * KIB), Just(1024 * KIB)], 1..700),
        ceiling in prop_oneof![Just(10 << 20), Just(64 << 20), Just(u64::MAX)],
    ) {
        let blocks = lens.iter().map(|len| (1, *len)).collect::<Vec<_>>();
        let blocks = lengths(&blocks);
        if let Some(matrix) = cheap(1000, ceiling, &blocks) {
            let units = |len| cost::units(len, 1000).unwrap();
            let alone = units(lens.iter().sum());
            prop_assert!(units(matrix.len()) as f64 <= alone as f64 * 1.02);
            prop_assert!(matrix.len() <= ceiling && blocks.len() <= 657);
            let members = blocks.iter().map(|one| matrix.columns_of(one.member())).sum::<u64>();
            prop_assert!(matrix.columns_of(index_len(&blocks)) + members <= matrix.columns);
        }
        let kept = keep(1000, ceiling, &blocks);
        let bytes = |of: &[Lengths]| of.iter().map(|one| one.block).sum::<u64>();
        prop_assert!(kept == blocks.len() || bytes(&blocks[..kept]) >= bytes(&blocks) / 4 * 3);
        prop_assert!(kept == blocks.len() || cheap(1000, ceiling, &blocks[..kept]).is_some());
    }
}

/// Columns that are not filled are paid for.
#[test]
fn what_fills_its_columns_becomes_a_quilt() {
    let units = |blocks: &[(u64, u64)]| {
        let matrix = cheap(1000, u64::MAX, &lengths(blocks))?;
        cost::units(matrix.len(), 1000)
    };
    assert_eq!(units(&[(222, 256 * KIB)]), Some(312));
    assert_eq!(units(&[(657, 4 * KIB)]), Some(75));
    assert_eq!(units(&[(1, 1)]), Some(63));
    for dear in [
        &[(256, 256 * KIB)][..],
        &[(64, 1024 * KIB)],
        &[(128, 256 * KIB), (500, 4 * KIB)],
        &[(658, 4 * KIB)],
        &[],
    ] {
        assert_eq!(units(dear), None, "{dear:?}");
    }
    assert!(cheap(1000, 60 << 20, &lengths(&[(222, 256 * KIB)])).is_some());
    assert!(cheap(1000, 50 << 20, &lengths(&[(222, 256 * KIB)])).is_none());
}

#[test]
fn a_full_pack_is_cut_where_its_blocks_fill_their_columns() {
    let kept = |ceiling, blocks: &[(u64, u64)]| keep(1000, ceiling, &lengths(blocks));
    assert_eq!(kept(64 << 20, &[(256, 256 * KIB)]), 222);
    // A node of dag-pb takes a column of its own.
    let with_nodes = kept(64 << 20, &[(2, 9 * KIB), (254, 256 * KIB)]);
    assert!((215..=223).contains(&with_nodes), "{with_nodes}");
    let ten = kept(10 << 20, &[(39, 256 * KIB)]);
    assert!((33..=37).contains(&ten), "{ten}");
    assert_eq!(kept(64 << 20, &[(700, 90 * KIB)]), 657);
    // What would be no quilt is not cut.
    assert_eq!(kept(64 << 20, &[(16_000, 4 * KIB)]), 16_000);
    assert_eq!(kept(64 << 20, &[(100, 256 * KIB), (9_000, 4 * KIB)]), 9_100);
}

#[tokio::test]
async fn blocks_without_cids_and_names_that_come_twice_make_no_quilt() {
    let block = |key: &str| Text(key.to_owned(), pattern(10, 1), false);
    let (one, other) = (key(1, 32), key(2, 32));
    assert!(Plan::of(&[block(&one), block(&other)], 1000, u64::MAX).is_some());
    assert!(Plan::of(&[block(&one), block(&one)], 1000, u64::MAX).is_none());
    assert!(Plan::of(&[block(&one), block("/a")], 1000, u64::MAX).is_none());
    assert!(Plan::of::<Text>(&[], 1000, u64::MAX).is_none());
}
