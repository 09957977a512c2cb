package structure

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var link = regexp.MustCompile(`\]\(([^)\s]+)\)|<img[^>]* src="([^"]+)"`)

// A link from one page of the project to another leads somewhere.
func TestLinks(t *testing.T) {
	dir := root(t)
	pages, links := 0, 0
	walk(t, func(name string) {
		if !strings.HasSuffix(name, ".md") {
			return
		}
		pages++
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(b), -1) {
			target, _, _ := strings.Cut(m[1]+m[2], "#")
			if target == "" || strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			links++
			if _, err := os.Stat(filepath.Join(dir, path.Dir(name), target)); err != nil {
				t.Errorf("%s links to %s, which is not there", name, target)
			}
		}
	})
	if pages == 0 || links == 0 {
		t.Errorf("found %d pages with %d links; the search is broken", pages, links)
	}
}
