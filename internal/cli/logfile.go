package cli

import (
	"os"
	"sync"
)

// logFileSize bounds a log file; with the one before it there are two.
const logFileSize = 1 << 20

// logFile is a log that cannot fill a disk: it lies where nobody rotates it.
type logFile struct {
	mu   sync.Mutex
	path string
	file *os.File
	size int64
}

func openLogFile(path string) (*logFile, error) {
	l := &logFile{path: path}
	return l, l.open()
}

func (l *logFile) open() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	l.file, l.size = f, info.Size()
	return nil
}

// Write appends, and begins a new file where the old one is full. If that cannot
// be done it goes on with what it has.
func (l *logFile) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size+int64(len(b)) > logFileSize {
		old := l.file
		if err := os.Rename(l.path, l.path+".1"); err == nil && l.open() == nil {
			old.Close()
		}
	}
	n, err := l.file.Write(b)
	l.size += int64(n)
	return n, err
}
