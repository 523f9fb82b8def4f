//! The pure parts of accounts: taking vouchers and pages in.
//!
//! Owns: statements of real jobs, truly signed. Never: opens a ledger or a network.

use potluck_protocol::lane::VoucherRefused;
use potluck_protocol::settle::{Meter, Receipt, Voucher};
use potluck_protocol::sign::{Signable, Signed, Verified};

use super::super::shown::Shown;
use super::super::take::receipt_for;
use super::*;

const CREATED: UnixMillis = UnixMillis::new(1_700_000_000_000);

fn keys() -> (SigningKey, SigningKey) {
    (SigningKey::from_seed([1; 32]), SigningKey::from_seed([2; 32]))
}

fn checked<T: Signable + Clone>(signed: &Signed<T>) -> Verified<T> {
    signed.clone().verify().unwrap()
}

/// A job's contract, and all its meters, vouchers and receipts.
struct Parts {
    contract: Verified<Contract>,
    meters: Vec<Verified<Meter>>,
    vouchers: Vec<Verified<Voucher>>,
    receipts: Vec<Receipt>,
}

fn parts(meters: u32) -> Parts {
    let (provider, renter) = keys();
    let all = job(&provider, &renter, 7, CREATED, meters);
    let Statement::Contract(contract) = &all[0] else { panic!() };
    let mut parts =
        Parts { contract: checked(contract), meters: Vec::new(), vouchers: Vec::new(), receipts: Vec::new() };
    for statement in &all {
        match statement {
            Statement::Meter(it) => parts.meters.push(checked(it)),
            Statement::Voucher(it) => parts.vouchers.push(checked(it)),
            Statement::Receipt(it) => parts.receipts.push(it.body.clone()),
            _ => {}
        }
    }
    parts
}

#[test]
fn a_voucher_that_comes_late_brings_the_receipt_that_it_would_have_brought_in_time() {
    let Parts { contract, meters, vouchers, receipts } = parts(3);
    for k in 0..3usize {
        let last = k.checked_sub(1).map(|before| &vouchers[before]);
        let receipt = receipt_for(&contract, last, Some(&meters[k]), &vouchers[k]);
        assert_eq!(receipt.as_ref(), Ok(&receipts[k]));
        let again = receipt_for(&contract, Some(&vouchers[k]), Some(&meters[k]), &vouchers[k]);
        assert_eq!(again, receipt, "and the same again");
    }
}

#[test]
fn vouchers_between_may_be_lost_but_our_meter_must_ask_for_what_is_paid() {
    let Parts { contract, meters, vouchers, receipts } = parts(3);
    let (meter, voucher) = (&meters[2], &vouchers[2]);
    for last in [None, Some(&vouchers[0])] {
        assert_eq!(receipt_for(&contract, last, Some(meter), voucher).as_ref(), Ok(&receipts[2]));
    }
    let no_meter = receipt_for(&contract, None, None, voucher);
    assert_eq!(no_meter, Err(VoucherRefused::Unexpected { k: 3 }));
    let wrong_meter = receipt_for(&contract, None, Some(&meters[1]), voucher);
    assert_eq!(wrong_meter, Err(VoucherRefused::Unexpected { k: 3 }));
    let (_, renter) = keys();
    let cheap = Voucher { amount: NanoCredit::new(1), ..voucher.body().clone() };
    let elsewhere = Voucher { meter: meters[1].digest(), ..voucher.body().clone() };
    for bad in [cheap, elsewhere] {
        let bad = renter.sign(bad).unwrap();
        assert!(receipt_for(&contract, None, Some(meter), &bad).is_err());
        assert!(receipt_for(&contract, Some(&vouchers[1]), Some(meter), &bad).is_err());
    }
    // An older one than is held brings nothing.
    assert!(receipt_for(&contract, Some(&vouchers[2]), Some(&meters[0]), &vouchers[0]).is_err());
}

#[test]
fn a_page_shows_what_we_signed_and_nothing_that_we_did_not() {
    let (provider, renter) = keys();
    let mut all = job(&provider, &renter, 7, CREATED, 3);
    let lane = all[0].lane().unwrap();
    let shown = Shown::of(renter.peer(), &all);
    assert!(shown.lanes.contains(&lane) && shown.receipted.is_empty());
    let last = parts(3).vouchers[2].digest();
    assert_eq!(shown.vouchers.get(&lane), Some(&(3, last)));
    let shown = Shown::of(provider.peer(), &all);
    assert!(shown.receipted.contains(&last) && shown.vouchers.is_empty());
    // With signatures that do not hold, the same page shows nothing.
    for statement in &mut all {
        if let Statement::Meter(it) = statement {
            it.body.tokens += 1;
        }
    }
    all.retain(|statement| matches!(statement, Statement::Meter(_)));
    assert_eq!(Shown::of(provider.peer(), &all), Shown::default());
}
