//! Amounts of bytes and of CPUs, written as Kubernetes quantities.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Longest quantity in bytes of text.
const MAX_LENGTH: usize = 32;

/// A Kubernetes quantity as its owner wrote it, for example `2Gi`. It is never written back in another form.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Quantity(pub String);

/// Why a quantity is not a number of bytes, or of thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantityError {
    /// It is not a quantity.
    Malformed,
    /// It is negative, has a fraction of what is counted, or exceeds 2^63 - 1.
    OutOfRange,
}

impl Quantity {
    /// The quantity in bytes.
    ///
    /// Syntax: `k8s.io/apimachinery/pkg/api/resource`, `Quantity`.
    ///
    /// # Errors
    ///
    /// [`QuantityError`] when it is not a whole, positive number of bytes.
    pub fn bytes(&self) -> Result<u64, QuantityError> {
        self.times(1)
    }

    /// The quantity in thousandths, which is how CPU time is counted.
    ///
    /// # Errors
    ///
    /// [`QuantityError`] when it is not a whole, positive number of thousandths.
    pub fn millis(&self) -> Result<u64, QuantityError> {
        self.times(1000)
    }

    fn times(&self, factor: u128) -> Result<u64, QuantityError> {
        if self.0.is_empty() || self.0.len() > MAX_LENGTH {
            return Err(QuantityError::Malformed);
        }
        let digits_end = self
            .0
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(self.0.len());
        let (number, suffix) = self.0.split_at(digits_end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(QuantityError::Malformed);
        }
        let (multiplier, divisor) = scale(suffix).ok_or(QuantityError::Malformed)?;
        scaled(whole, fraction, multiplier * factor, divisor).ok_or(QuantityError::OutOfRange)
    }
}

/// Multiplier and divisor of a suffix.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    let multiplier = match suffix {
        "" => 1,
        "m" => return Some((1, 1_000)),
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "P" => 1_000_000_000_000_000,
        "E" => 1_000_000_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        "Ei" => 1 << 60,
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10_u128
                .checked_pow(exponent.unsigned_abs())
                .filter(|_| exponent.abs() <= 18)?;
            return Some(if exponent < 0 { (1, power) } else { (power, 1) });
        }
    };
    Some((multiplier, 1))
}

fn scaled(whole: &str, fraction: &str, multiplier: u128, divisor: u128) -> Option<u64> {
    let fraction = fraction.trim_end_matches('0');
    let denominator = 10_u128
        .checked_pow(u32::try_from(fraction.len()).ok()?)?
        .checked_mul(divisor)?;
    let digits: u128 = format!("0{whole}{fraction}").parse().ok()?;
    let numerator = digits.checked_mul(multiplier)?;
    let bytes = numerator
        .checked_div(denominator)
        .filter(|_| numerator % denominator == 0)?;
    u64::try_from(bytes).ok().filter(|bytes| i64::try_from(*bytes).is_ok())
}

impl JsonSchema for Quantity {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": 1, "maxLength": MAX_LENGTH })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_in_bytes() {
        let table = [
            ("64Mi", Ok(64 << 20)),
            ("1.5Gi", Ok(1536 << 20)),
            ("1e9", Ok(1_000_000_000)),
            ("2E", Ok(2_000_000_000_000_000_000)),
            ("1000m", Ok(1)),
            ("1.0", Ok(1)),
            (".5Ki", Ok(512)),
            ("1E3", Ok(1000)),
            ("1m", Err(QuantityError::OutOfRange)),
            ("8Ei", Err(QuantityError::OutOfRange)),
            ("-1Gi", Err(QuantityError::Malformed)),
            ("1 Gi", Err(QuantityError::Malformed)),
            ("1GB", Err(QuantityError::Malformed)),
            ("1e99", Err(QuantityError::Malformed)),
            ("1.2.3", Err(QuantityError::Malformed)),
            (".", Err(QuantityError::Malformed)),
            ("", Err(QuantityError::Malformed)),
            ("99999999999999999999999999999999", Err(QuantityError::OutOfRange)),
        ];
        for (text, bytes) in table {
            assert_eq!(Quantity(text.to_owned()).bytes(), bytes, "{text}");
        }
    }

    #[test]
    fn quantities_in_thousandths() {
        let table = [
            ("2", Ok(2000)),
            ("250m", Ok(250)),
            ("0.5", Ok(500)),
            ("0.0005", Err(QuantityError::OutOfRange)),
            ("9e18", Err(QuantityError::OutOfRange)),
            ("two", Err(QuantityError::Malformed)),
        ];
        for (text, millis) in table {
            assert_eq!(Quantity(text.to_owned()).millis(), millis, "{text}");
        }
    }
}
