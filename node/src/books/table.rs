//! Tables for people, and comma-separated values for spreadsheets.
//!
//! Owns: the alignment of columns, the quoting of values, and taking out what could steer a terminal.
//! Never: decides what is in a column. Called by [`super::print`].

/// A column.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    /// Above it.
    pub(super) name: &'static str,
    /// Numbers stand at the right.
    pub(super) right: bool,
}

/// A column of text.
pub(super) const fn text(name: &'static str) -> Column {
    Column { name, right: false }
}

/// A column of numbers.
pub(super) const fn number(name: &'static str) -> Column {
    Column { name, right: true }
}

/// The lines of a table, the names first.
pub(super) fn table(columns: &[Column], rows: &[Vec<String>]) -> Vec<String> {
    let head: Vec<String> = columns.iter().map(|column| column.name.to_uppercase()).collect();
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| harmless(cell)).collect()).collect();
    let lines = || std::iter::once(&head).chain(&rows);
    let width = |at: usize| lines().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns.len()).map(|at| width(at).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(columns).zip(&widths).map(|((cell, column), width)| {
            let room = " ".repeat(width.saturating_sub(cell.chars().count()));
            if column.right { format!("{room}{cell}") } else { format!("{cell}{room}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    lines().map(line).collect()
}

/// The lines of a file of comma-separated values (RFC 4180), the names first.
pub(super) fn csv(names: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let line = |row: &[String]| row.iter().map(|cell| quoted(cell)).collect::<Vec<_>>().join(",");
    std::iter::once(names.join(",")).chain(rows.iter().map(|row| line(row))).collect()
}

fn quoted(cell: &str) -> String {
    if cell.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell.to_owned()
    }
}

/// A stranger's text without what could steer a terminal.
pub(super) fn harmless(text: &str) -> String {
    text.chars().filter(|it| !it.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_under_their_names() {
        let rows = [
            vec!["a".to_owned(), "−$0.01".to_owned()],
            vec!["longer\u{1b}[2J".to_owned(), "$1.00".to_owned()],
        ];
        let lines = table(&[text("peer"), number("balance")], &rows);
        assert_eq!(lines, ["PEER       BALANCE", "a           −$0.01", "longer[2J    $1.00"]);
    }

    #[test]
    fn values_with_commas_and_quotes_stay_one_value() {
        let rows = [vec!["a,b".to_owned(), "say \"x\"".to_owned()]];
        assert_eq!(csv(&["one", "other"], &rows), ["one,other", "\"a,b\",\"say \"\"x\"\"\""]);
    }
}
