package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const service = `apiVersion: v1
kind: Service
metadata:
  name: tollgate
spec:
  ports:
    - name: grpc
      port: 50051
`

func check(t *testing.T, text string) (int, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "manifest.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	decoder, err := strictDecoder()
	if err != nil {
		t.Fatal(err)
	}
	return checkManifests(decoder, path)
}

func TestDecodesEachDocument(t *testing.T) {
	count, err := check(t, "# only a comment\n---\n"+service+"---\n"+service)
	if err != nil || count != 2 {
		t.Errorf("2 documents are valid, got %d: %v", count, err)
	}
}

func TestRefusesWhatAServerWouldRefuse(t *testing.T) {
	cases := []struct{ name, old, new, expected string }{
		{"an unknown field", "port: 50051", "port: 50051\n      tragetPort: grpc", `unknown field "spec.ports[0].tragetPort"`},
		{"a field that is there twice", "name: grpc", "name: grpc\n      name: again", "already set"},
		{"a value of the wrong type", "port: 50051", "port: grpc", "cannot unmarshal string"},
		{"an unknown kind", "kind: Service", "kind: Sevrice", `no kind "Sevrice"`},
		{"an unknown version", "apiVersion: v1", "apiVersion: v9", `no kind "Service" is registered for version "v9"`},
		{"no document", service, "# nothing\n", "no document"},
	}
	for _, one := range cases {
		t.Run(one.name, func(t *testing.T) {
			_, err := check(t, strings.Replace(service, one.old, one.new, 1))
			if err == nil || !strings.Contains(err.Error(), one.expected) {
				t.Errorf("expected %q, got %v", one.expected, err)
			}
		})
	}
}

func TestKnowsTheKindsOfThePrometheusOperator(t *testing.T) {
	rule := "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: tollgate\nspec:\n  groups: []\n"
	if _, err := check(t, rule); err != nil {
		t.Error(err)
	}
	if _, err := check(t, rule+"  group: []\n"); err == nil {
		t.Error("an unknown field is refused")
	}
}

func TestBuildsAKustomization(t *testing.T) {
	folder := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("service.yaml", service)
	write("kustomization.yaml", "resources: [service.yaml]\nconfigMapGenerator:\n  - name: catalog\n    literals: [a=b]\n")
	decoder, err := strictDecoder()
	if err != nil {
		t.Fatal(err)
	}
	if count, err := checkManifests(decoder, folder); err != nil || count != 2 {
		t.Errorf("a Service and a ConfigMap, got %d: %v", count, err)
	}
	write("kustomization.yaml", "resources: [missing.yaml]\n")
	if _, err := checkManifests(decoder, folder); err == nil {
		t.Error("a missing file is an error")
	}
}
