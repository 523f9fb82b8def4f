//! Money and time as integers.
//!
//! Owns: the units a bill is made of and the one rounding rule. Never: uses a float, reads a clock,
//! or lets an amount wrap. Called by every room that prices, meters or settles.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Nano-credits in one credit.
pub const NANO: u64 = 1_000_000_000;
/// Seconds in an hour: prices are shown per hour and held per second.
const SECONDS_PER_HOUR: u64 = 3_600;

/// An amount of nano-credits. One credit stands for one US dollar by convention; what it is, is an
/// IOU between two peers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NanoCredit(u64);

/// Milliseconds of leased worker wall time, from a monotonic clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GpuMillis(u64);

/// A price: nano-credits per GPU-second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rate(u64);

/// Wall-clock time in milliseconds since 1970, for display and expiry only, never for billing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMillis(u64);

macro_rules! newtype {
    ($type:ident, $unit:literal) => {
        impl $type {
            /// Nothing.
            pub const ZERO: Self = Self(0);
            #[doc = concat!("From a number of ", $unit, ".")]
            #[must_use]
            pub const fn new(value: u64) -> Self {
                Self(value)
            }
            #[doc = concat!("The number of ", $unit, ".")]
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }
            /// The sum, stopping at the largest value.
            #[must_use]
            pub const fn saturating_add(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }
            /// The difference, stopping at zero.
            #[must_use]
            pub const fn saturating_sub(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }
        }
    };
}

newtype!(NanoCredit, "nano-credits");
newtype!(GpuMillis, "milliseconds");
newtype!(Rate, "nano-credits per GPU-second");
newtype!(UnixMillis, "milliseconds since 1970");

/// A text that is not an amount of dollars. Fault: whoever typed it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{text}` is not an amount in dollars ({why})")]
pub struct AmountError {
    /// What was given, cut to 40 characters.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl NanoCredit {
    /// Reads a decimal number of dollars: `0.0000001`, `2`, `$1.50`. At most nine decimals, so that
    /// nothing is rounded.
    ///
    /// # Errors
    /// When it is no such number, has more than nine decimals, or is over about 18 billion.
    pub fn from_dollars(text: &str) -> Result<Self, AmountError> {
        let fail = |why| AmountError { text: text.chars().take(40).collect(), why };
        let plain = text.strip_prefix('$').unwrap_or(text);
        let (whole, fraction) = plain.split_once('.').unwrap_or((plain, ""));
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) {
            return Err(fail("expected digits and at most one point, like 0.25"));
        }
        if fraction.len() > 9 {
            return Err(fail("at most nine decimals: the smallest unit is $0.000000001"));
        }
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| fail("too large"))? };
        let nanos: u64 = format!("{fraction:0<9}").parse().map_err(|_| fail("too large"))?;
        whole
            .checked_mul(NANO)
            .and_then(|amount| amount.checked_add(nanos))
            .map(Self)
            .ok_or_else(|| fail("too large"))
    }
}

impl fmt::Display for NanoCredit {
    /// `$0.000014267`: all nine decimals are shown when they matter, two otherwise.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&dollars(i128::from(self.0), false))
    }
}

/// A signed amount of nano-credits as dollars; `plus` also puts a sign before gains.
#[must_use]
pub fn dollars(nanos: i128, plus: bool) -> String {
    let sign = match nanos {
        n if n < 0 => "−",
        n if n > 0 && plus => "+",
        _ => "",
    };
    let magnitude = nanos.unsigned_abs();
    let (whole, fraction) = (magnitude / u128::from(NANO), magnitude % u128::from(NANO));
    let decimals = format!("{fraction:09}");
    let kept = decimals.trim_end_matches('0').len().max(2);
    format!("{sign}${whole}.{}", &decimals[..kept])
}

impl Rate {
    /// The rate for a price in dollars per hour, rounded down (in the renter's favour):
    /// `$0.14/h` is 38,888 nano-credits per second.
    ///
    /// # Errors
    /// As [`NanoCredit::from_dollars`].
    pub fn from_dollars_per_hour(text: &str) -> Result<Self, AmountError> {
        let plain = text.strip_suffix("/h").unwrap_or(text);
        Ok(Self(NanoCredit::from_dollars(plain)?.get() / SECONDS_PER_HOUR))
    }

    /// What `time` costs at this rate alone.
    #[must_use]
    pub fn amount(self, time: GpuMillis) -> NanoCredit {
        amount(&[(self, time)])
    }
}

impl fmt::Display for Rate {
    /// `$0.14/h`, rounded to the nearest thousandth of a cent so that a price reads as it was set.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const STEP: u128 = 10_000;
        let hourly = u128::from(self.0) * u128::from(SECONDS_PER_HOUR);
        let rounded = if hourly < STEP * 100 { hourly } else { (hourly + STEP / 2) / STEP * STEP };
        write!(f, "{}/h", dollars(i128::try_from(rounded).unwrap_or(i128::MAX), false))
    }
}

/// The one billing rule: `floor(sum of rate * milliseconds / 1000)` in u128 over *cumulative* times,
/// so that a whole lane is off by less than one nano-credit, in the renter's favour. An amount past
/// 2^64 - 1 stays there; no contract's limit reaches so far.
#[must_use]
pub fn amount(spent: &[(Rate, GpuMillis)]) -> NanoCredit {
    NanoCredit(u64::try_from(exact(spent) / 1_000).unwrap_or(u64::MAX))
}

/// The longest time at `rate` whose bill, on top of what was `spent`, is still at most `budget`: what
/// a job may use before its budget stops it. `None` when any length fits.
#[must_use]
pub fn time_within(budget: NanoCredit, rate: Rate, spent: &[(Rate, GpuMillis)]) -> Option<GpuMillis> {
    if rate == Rate::ZERO {
        return None;
    }
    // floor(x / 1000) <= budget  <=>  x <= 1000 * budget + 999
    let most = u128::from(budget.0) * 1_000 + 999;
    let left = most.saturating_sub(exact(spent));
    Some(GpuMillis(u64::try_from(left / u128::from(rate.0)).unwrap_or(u64::MAX)))
}

/// Thousandths of a nano-credit. Products of u64s pass 2^128 by their sum alone only at values no
/// clock reaches.
fn exact(spent: &[(Rate, GpuMillis)]) -> u128 {
    spent.iter().fold(0, |sum: u128, (rate, ms)| sum.saturating_add(u128::from(rate.0) * u128::from(ms.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn prices_read_as_people_write_them() {
        assert_eq!(Rate::from_dollars_per_hour("0.14"), Ok(Rate::new(38_888)));
        assert_eq!(Rate::from_dollars_per_hour("$0.14/h"), Ok(Rate::new(38_888)));
        assert_eq!(Rate::new(38_888).to_string(), "$0.14/h");
        assert_eq!(NanoCredit::from_dollars("0.0000001"), Ok(NanoCredit::new(100)));
        assert_eq!(NanoCredit::new(14_267).to_string(), "$0.000014267");
        assert_eq!(NanoCredit::new(1_500_000_000).to_string(), "$1.50");
        assert_eq!(dollars(-14_267, true), "−$0.000014267");
    }

    #[test]
    fn bad_amounts_say_why() {
        for text in ["", ".", "-1", "1e3", "1.0000000001", "99999999999999", "1.2.3", "١"] {
            assert!(NanoCredit::from_dollars(text).is_err(), "{text}");
        }
    }

    proptest! {
        /// The bill never falls as time passes, and never asks more than the exact product.
        #[test]
        fn bills_are_monotone_and_floored(rate in 0..u64::from(u32::MAX), a in 0..1u64 << 40, b in 0..1u64 << 40) {
            let (low, high) = (a.min(b), a.max(b));
            let rate = Rate::new(rate);
            prop_assert!(rate.amount(GpuMillis::new(low)) <= rate.amount(GpuMillis::new(high)));
            let exact = u128::from(rate.get()) * u128::from(high);
            let billed = u128::from(rate.amount(GpuMillis::new(high)).get()) * 1_000;
            prop_assert!(billed <= exact && exact - billed < 1_000);
        }

        /// `time_within` is exact: that long fits, one millisecond more does not.
        #[test]
        fn a_budget_is_used_to_the_millisecond(
            budget in 0..1u64 << 50, rate in 1..1u64 << 32, load_rate in 0..1u64 << 20, load in 0..1u64 << 20
        ) {
            let (budget, rate, load_rate, load) =
                (NanoCredit::new(budget), Rate::new(rate), Rate::new(load_rate), GpuMillis::new(load));
            let spent = (load_rate, load);
            if amount(&[spent]) <= budget {
                let run = time_within(budget, rate, &[spent]).unwrap();
                prop_assert!(amount(&[(rate, run), spent]) <= budget);
                let over = run.saturating_add(GpuMillis::new(1));
                prop_assert!(amount(&[(rate, over), spent]) > budget);
            }
        }

        #[test]
        fn dollars_round_trip(nanos: u64) {
            let shown = NanoCredit::new(nanos).to_string();
            prop_assert_eq!(NanoCredit::from_dollars(&shown), Ok(NanoCredit::new(nanos)));
        }
    }
}
