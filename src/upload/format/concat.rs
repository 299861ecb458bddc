//! The format that is one block after another, in the order in which they are read, and nothing
//! else.

use super::{Body, Layout, Parcel, Place};

pub(super) fn lay_out<P: Parcel>(blocks: &[P]) -> (Body, Layout) {
    let mut body = Body::default();
    let place = |block: &P| {
        let offset = body.len();
        block.append_to(&mut body);
        let len = block.len();
        Place::range(offset, len)
    };
    let places = blocks.iter().map(place).collect();
    let len = body.len();
    (body, Layout { places, len })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Text(&'static str);

    impl Parcel for Text {
        fn key(&self) -> &str {
            self.0
        }

        fn len(&self) -> u64 {
            self.0.len() as u64
        }

        fn is_dag_pb(&self) -> bool {
            false
        }

        fn append_to(&self, body: &mut Body) {
            body.push(self.0.as_bytes().into());
        }
    }

    #[tokio::test]
    async fn blocks_lie_one_after_another() {
        let (body, layout) = lay_out(&["", "first", "", "second", ""].map(Text));
        assert_eq!(layout.len, 11);
        assert_eq!(body.collect().await.unwrap(), "firstsecond");
        let places =
            [(0, 0), (0, 5), (5, 0), (5, 6), (11, 0)].map(|(at, len)| Place::range(at, len));
        assert_eq!(layout.places, places);
    }
}
