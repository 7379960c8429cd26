//! The log of a run: a CSV file with a row every so many steps.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::TrainError;
use crate::files::write_whole;

/// A log that is being written. Its first column is `step`.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    header: String,
    file: File,
}

impl Log {
    /// Opens the log of a run that goes on after `step` (0 for a new one): rows after that step, which the run will write
    /// again, and a row that a killed run left unfinished are removed.
    ///
    /// # Errors
    /// [`TrainError`] if the file cannot be written, or is there with other columns.
    pub(crate) fn open(path: &Path, columns: &[&str], step: u64) -> Result<Self, TrainError> {
        let io = |reason| TrainError::Io { path: path.into(), reason };
        let header = format!("step,{}", columns.join(","));
        let old = match std::fs::read_to_string(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => String::new(),
            text => text.map_err(io)?,
        };
        let found = old.lines().next().unwrap_or(&header);
        if found != header {
            return Err(TrainError::Columns { path: path.into(), found: found.into(), expected: header });
        }
        let kept = rows(&old, &header).filter(|(at, _)| *at <= step).map(|(_, line)| line);
        let text: Vec<&str> = std::iter::once(header.as_str()).chain(kept).collect();
        write_whole(path, format!("{}\n", text.join("\n")).as_bytes()).map_err(io)?;
        let file = OpenOptions::new().append(true).open(path).map_err(io)?;
        Ok(Self { path: path.into(), header, file })
    }

    /// The columns after `step` of a log that is there.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn columns(path: &Path) -> io::Result<Option<Vec<String>>> {
        let text = match std::fs::read_to_string(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        Ok(text.lines().next().map(|header| header.split(',').skip(1).map(str::to_owned).collect()))
    }

    /// Appends a row: one value for each column after `step`; NaN leaves its field empty.
    ///
    /// # Errors
    /// [`TrainError::Io`], such as for a full disk.
    pub(crate) fn row(&mut self, step: u64, values: &[f64]) -> Result<(), TrainError> {
        let mut line = step.to_string();
        for value in values {
            // Losses are f32: their shortest digits, not those of the f64 they became.
            let field = if value.is_nan() { String::new() } else { (*value as f32).to_string() };
            line += &format!(",{field}");
        }
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(|reason| TrainError::Io { path: self.path.clone(), reason })
    }

    /// Step and value of a column's fields that are not empty, from the first step of the run on.
    ///
    /// # Errors
    /// [`TrainError::Io`] if the file cannot be read.
    pub(crate) fn series(&self, column: &str) -> Result<Vec<(f64, f64)>, TrainError> {
        let text = std::fs::read_to_string(&self.path);
        let text = text.map_err(|reason| TrainError::Io { path: self.path.clone(), reason })?;
        let Some(place) = self.header.split(',').position(|name| name == column) else {
            return Ok(Vec::new());
        };
        let field = |(step, line): (u64, &str)| Some((step as f64, line.split(',').nth(place)?.parse().ok()?));
        Ok(rows(&text, &self.header).filter_map(field).collect())
    }
}

/// The whole rows of a log, each with its step.
fn rows<'a>(text: &'a str, header: &str) -> impl Iterator<Item = (u64, &'a str)> {
    let commas = header.matches(',').count();
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    let rows = whole.lines().skip(1).filter(move |line| line.matches(',').count() == commas);
    rows.filter_map(|line| Some((line.split(',').next()?.parse().ok()?, line)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [&str; 3] = ["seconds", "loss", "val_loss"];

    #[test]
    fn a_resumed_log_has_each_step_once_and_no_torn_row() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.csv");
        let mut log = Log::open(&path, &COLUMNS, 0).unwrap();
        for step in [10, 20, 30] {
            log.row(step, &[step as f64 / 4.0, f64::from(0.1f32), f64::NAN]).unwrap();
        }
        log.file.write_all(b"40,9.5,0.").unwrap();
        let mut log = Log::open(&path, &COLUMNS, 25).unwrap();
        log.row(30, &[8.0, 1e-5, 0.25]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "step,seconds,loss,val_loss\n10,2.5,0.1,\n20,5,0.1,\n30,8,0.00001,0.25\n");
        assert_eq!(log.series("loss").unwrap(), [(10.0, 0.1), (20.0, 0.1), (30.0, 0.00001)]);
        assert_eq!(log.series("val_loss").unwrap(), [(30.0, 0.25)]);
        // A row whose fields are torn but complete in number has no line end.
        std::fs::write(&path, "step,seconds,loss,val_loss\n10,1,2,\n20,1,2,0.0").unwrap();
        Log::open(&path, &COLUMNS, 50).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "step,seconds,loss,val_loss\n10,1,2,\n");
    }

    #[test]
    fn a_new_run_starts_empty_and_another_runs_log_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.csv");
        Log::open(&path, &COLUMNS, 0).unwrap().row(1, &[1.0, 1.0, 1.0]).unwrap();
        Log::open(&path, &COLUMNS, 0).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "step,seconds,loss,val_loss\n");
        let error = Log::open(&path, &["seconds", "loss"], 0).unwrap_err().to_string();
        assert!(error.contains("step,seconds,loss,val_loss, not step,seconds,loss: move"), "{error}");
        let error = Log::open(&folder.path().join("no/log.csv"), &COLUMNS, 0).unwrap_err().to_string();
        assert!(error.contains("there is no folder"), "{error}");
    }
}
