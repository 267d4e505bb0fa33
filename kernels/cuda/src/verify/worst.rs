//! The largest of many errors.
//!
//! Invariant: one error that is NaN makes the result NaN, wherever it stands, and so does a number
//! without its partner; `NaN <= tolerance` is false, so neither passes.

/// The largest error.
pub(super) fn worst(errors: impl IntoIterator<Item = f64>) -> f64 {
    // `f64::max` forgets a NaN on either side.
    let larger = |worst: f64, error: f64| {
        if worst.is_nan() || error.is_nan() {
            f64::NAN
        } else {
            worst.max(error)
        }
    };
    errors.into_iter().fold(0.0, larger)
}

/// The largest error of the pairs.
pub(super) fn worst_of_pairs<F, E>(
    found: impl IntoIterator<Item = F>,
    expected: impl IntoIterator<Item = E>,
    error: impl Fn(F, E) -> f64,
) -> f64 {
    let (mut found, mut expected) = (found.into_iter().fuse(), expected.into_iter().fuse());
    worst(std::iter::from_fn(|| {
        match (found.next(), expected.next()) {
            (Some(found), Some(expected)) => Some(error(found, expected)),
            (None, None) => None,
            _ => Some(f64::NAN),
        }
    }))
}

/// The largest difference, of a number's size where that is above 1.
pub(super) fn worst_difference(found: impl IntoIterator<Item = f64>, expected: &[f64]) -> f64 {
    worst_of_pairs(found, expected, |found, expected| {
        (found - expected).abs() / expected.abs().max(1.0)
    })
}

/// The inner product; NaN where one has more numbers.
pub(super) fn inner_product(a: &[f32], b: impl ExactSizeIterator<Item = f64>) -> f64 {
    if a.len() != b.len() {
        return f64::NAN;
    }
    a.iter().zip(b).map(|(x, y)| f64::from(*x) * y).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Once a NaN was forgotten as soon as a number followed it.
    #[test]
    fn what_is_not_a_number_is_kept_wherever_it_stands() {
        assert_eq!(worst([0.5, 2.0, 1.0]), 2.0);
        assert_eq!(worst([]), 0.0);
        for at in 0..3 {
            let mut errors = [0.5, 2.0, 1.0];
            errors[at] = f64::NAN;
            assert!(worst(errors).is_nan(), "{at}");
            assert!(worst_difference(errors, &[1.0; 3]).is_nan(), "{at}");
            assert!(worst_difference([1.0; 3], &errors).is_nan(), "{at}");
        }
    }

    #[test]
    fn what_has_no_partner_is_not_a_number() {
        assert_eq!(worst_difference([1.0, 4.0], &[1.0, 2.0]), 1.0);
        assert!(worst_difference([1.0], &[1.0, 2.0]).is_nan());
        assert!(worst_difference([1.0, 2.0], &[1.0]).is_nan());
        assert!(worst_difference([], &[1.0]).is_nan());
        assert_eq!(inner_product(&[1.0, 2.0], [3.0, 4.0].into_iter()), 11.0);
        assert!(inner_product(&[1.0], [1.0, 0.0].into_iter()).is_nan());
    }
}
